package admission_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
)

func list(text string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for _, f := range strings.Fields(text) {
		name, q, _ := strings.Cut(f, "=")
		l[corev1.ResourceName(name)] = resource.MustParse(q)
	}
	return l
}

// sized is a pod with one container that asks for amounts.
func sized(requests, limits string) *corev1.Pod {
	return pod(func(p *corev1.Pod) {
		p.Spec.InitContainers = nil
		p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}}}
	})
}

func TestLimitRanges(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	servertest.PutAs(t, c.store, api.LimitRangeKind, &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
		{Type: corev1.LimitTypeContainer, Min: list("cpu=10m"), Max: list("cpu=2"), Default: list("cpu=500m memory=1Gi"), DefaultRequest: list("cpu=100m"), MaxLimitRequestRatio: list("cpu=5")},
		{Type: corev1.LimitTypePod, Max: list("memory=2Gi")},
		{Type: corev1.LimitTypePersistentVolumeClaim, Min: list("storage=1Gi"), Max: list("storage=10Gi")},
	}}})
	p := sized("", "")
	refused(t, "empty", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: p}), "")
	if got := p.Spec.Containers[0].Resources; got.Requests.Cpu().String() != "100m" || got.Limits.Memory().String() != "1Gi" {
		t.Errorf("defaults: %v", got)
	}
	if got, want := p.Annotations["kubernetes.io/limit-ranger"], "LimitRanger plugin set: cpu request for container c; cpu, memory limit for container c"; got != want {
		t.Errorf("annotation %q", got)
	}
	for what, tc := range map[string]struct{ requests, limits, want string }{
		"too little": {"cpu=5m", "cpu=20m memory=1", "minimum cpu usage per Container is 10m, but request is 5m"},
		"too much":   {"cpu=1", "cpu=3 memory=1", "maximum cpu usage per Container is 2, but limit is 3"},
		"ratio":      {"cpu=100m", "cpu=600m memory=1", "cpu max limit to request ratio per Container is 5, but provided ratio is 6.000000"},
		"pod":        {"cpu=100m", "cpu=200m memory=3Gi", "maximum memory usage per Pod is 2Gi, but limit is 3Gi"},
		"two":        {"cpu=1m", "cpu=3 memory=1", "[minimum cpu usage per Container is 10m, but request is 1m, maximum cpu"},
	} {
		refused(t, what, c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: sized(tc.requests, tc.limits)}), tc.want)
	}
	whole := sized("cpu=100m", "cpu=200m memory=1Gi")
	whole.Spec.Resources = &corev1.ResourceRequirements{Requests: list("memory=3Gi"), Limits: list("memory=3Gi")}
	refused(t, "as a whole", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: whole}), "maximum memory usage per Pod is 2Gi, but limit is 3Gi")
	resized := rest.Admitting{Operation: rest.OpUpdate, Sub: "resize", Object: sized("cpu=1", "cpu=3 memory=1"), Old: sized("cpu=1", "cpu=1")}
	refused(t, "resize", c.ask(&resized), "maximum cpu usage")
	for size, want := range map[string]string{"2Gi": "", "1Mi": "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi", "11Gi": "maximum storage usage per PersistentVolumeClaim is 10Gi, but request is 11Gi"} {
		claim := pvc(size, "")
		refused(t, size, c.ask(&rest.Admitting{Operation: rest.OpCreate, Kind: api.PersistentVolumeClaimKind, Object: claim}), want)
	}
}

func pvc(size, class string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, Resources: corev1.VolumeResourceRequirements{Requests: list("storage=" + size)}}}
}

func quotaOf(name, hard, used string, change func(*corev1.ResourceQuota)) *corev1.ResourceQuota {
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	q.Spec.Hard, q.Status.Hard, q.Status.Used = list(hard), list(hard), list(used)
	if change != nil {
		change(q)
	}
	return q
}

func (c *chain) used(name string, resource corev1.ResourceName) string {
	e := c.store.Snapshot(api.ResourceQuotaKind).Get(api.Key{Namespace: "default", Name: name})
	q := e.Object.(*corev1.ResourceQuota).Status.Used[resource]
	return q.String()
}

func TestQuotas(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	servertest.PutAs(t, c.store, api.ResourceQuotaKind,
		quotaOf("pods", "pods=3 requests.cpu=1", "pods=1 requests.cpu=200m", nil),
		quotaOf("high", "pods=1", "pods=1", func(q *corev1.ResourceQuota) {
			q.Spec.ScopeSelector = &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
				{ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn, Values: []string{"system-node-critical"}}}}
		}),
		quotaOf("maps", "count/configmaps=1 configmaps=5", "count/configmaps=1 configmaps=1", nil),
		quotaOf("secrets", "count/secrets=1", "", nil))
	create := func(o api.Object) error { return c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: o}) }
	refused(t, "fits", create(sized("cpu=300m", "")), "")
	if got := c.used("pods", "requests.cpu") + " " + c.used("pods", "pods"); got != "500m 2" {
		t.Errorf("used %s", got)
	}
	refused(t, "too much", create(sized("cpu=600m", "")), "exceeded quota: pods, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1")
	refused(t, "unspecified", create(sized("", "")), "failed quota: pods: must specify requests.cpu for: c")
	whole := sized("", "")
	whole.Spec.Resources = &corev1.ResourceRequirements{Requests: list("cpu=600m")}
	refused(t, "too much as a whole", create(whole), "exceeded quota: pods, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1")
	high := sized("cpu=1m", "")
	high.Spec.PriorityClassName = "system-node-critical"
	refused(t, "scope", create(high), "exceeded quota: high, requested: pods=1, used: pods=1, limited: pods=1")
	if got := c.used("pods", "pods"); got != "2" {
		t.Errorf("a refused pod was reserved: %s", got)
	}
	refused(t, "dry run", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: sized("cpu=1m", ""), DryRun: true}), "")
	if got := c.used("pods", "pods"); got != "2" {
		t.Errorf("a dry run reserved: %s", got)
	}
	refused(t, "count", create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "m"}}),
		"exceeded quota: maps, requested: count/configmaps=1, used: count/configmaps=1, limited: count/configmaps=1")
	refused(t, "uncounted", create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}}), "status unknown for quota: secrets, resources: count/secrets")
	refused(t, "event", create(&corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}}), "")

	old, now := sized("cpu=300m", ""), sized("cpu=400m", "")
	refused(t, "resize", c.ask(&rest.Admitting{Operation: rest.OpUpdate, Sub: "resize", Object: now, Old: old}), "")
	if got := c.used("pods", "requests.cpu"); got != "600m" {
		t.Errorf("after a resize %s", got)
	}
	refused(t, "update", c.ask(&rest.Admitting{Operation: rest.OpUpdate, Object: sized("cpu=9", ""), Old: old}), "")
}

// TestQuotaRace creates far more than fits, at once.
func TestQuotaRace(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	servertest.PutAs(t, c.store, api.ResourceQuotaKind, quotaOf("q", "pods=10", "pods=0", nil))
	var mu sync.Mutex
	var wg sync.WaitGroup
	admitted := 0
	for range 40 {
		wg.Go(func() {
			one := &chain{t: t, store: c.store, all: c.all}
			if one.ask(&rest.Admitting{Operation: rest.OpCreate, Object: sized("", "")}) == nil {
				mu.Lock()
				defer mu.Unlock()
				admitted++
			}
		})
	}
	wg.Wait()
	if admitted != 10 || c.used("q", "pods") != "10" {
		t.Errorf("admitted %d, used %s", admitted, c.used("q", "pods"))
	}
}

func TestPriorityClasses(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	never := corev1.PreemptNever
	servertest.PutAs(t, c.store, api.PriorityClassKind,
		&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "low"}, Value: -5, GlobalDefault: true, PreemptionPolicy: &never},
		&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "lower"}, Value: 5, GlobalDefault: true})
	p := pod(nil)
	refused(t, "default", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: p}), "")
	if p.Spec.PriorityClassName != "low" || *p.Spec.Priority != -5 || *p.Spec.PreemptionPolicy != never {
		t.Errorf("%q %d %s", p.Spec.PriorityClassName, *p.Spec.Priority, *p.Spec.PreemptionPolicy)
	}
	refused(t, "unknown", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: pod(func(p *corev1.Pod) { p.Spec.PriorityClassName = "x" })}), "no PriorityClass with name x was found")
	other := int32(7)
	refused(t, "number", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: pod(func(p *corev1.Pod) { p.Spec.Priority = &other })}), "the integer value of priority (7) must not be provided in pod spec")
	class := func(name string) *rest.Admitting {
		return &rest.Admitting{Operation: rest.OpUpdate, Kind: api.PriorityClassKind, Object: &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, GlobalDefault: true}}
	}
	refused(t, "second default", c.ask(class("z")), "PriorityClass low is already marked as default. Only one default can exist")
	refused(t, "the default", c.ask(class("low")), "")
}

func TestRuntimeClasses(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	name := "gvisor"
	servertest.PutAs(t, c.store, api.RuntimeClassKind, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: "runsc",
		Overhead: &nodev1.Overhead{PodFixed: list("cpu=10m")},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"sandbox": "yes"}, Tolerations: []corev1.Toleration{
			{Key: "a", Operator: corev1.TolerationOpExists}, {Key: "b", Operator: corev1.TolerationOpEqual, Value: "c", Effect: corev1.TaintEffectNoSchedule}}}})
	with := func(change func(*corev1.Pod)) *corev1.Pod {
		return pod(func(p *corev1.Pod) {
			p.Spec.RuntimeClassName = &name
			if change != nil {
				change(p)
			}
		})
	}
	p := with(func(p *corev1.Pod) {
		p.Spec.Tolerations = []corev1.Toleration{{Key: "b", Operator: corev1.TolerationOpExists}, {Key: "a", Operator: corev1.TolerationOpEqual, Value: "x"}}
	})
	refused(t, "class", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: p}), "")
	if p.Spec.Overhead.Cpu().String() != "10m" || p.Spec.NodeSelector["sandbox"] != "yes" {
		t.Errorf("overhead %v, selector %v", p.Spec.Overhead, p.Spec.NodeSelector)
	}
	var keys []string
	for _, tol := range p.Spec.Tolerations {
		keys = append(keys, tol.Key+" "+string(tol.Operator))
	}
	if got := fmt.Sprint(keys); got != "[b Exists a Exists node.kubernetes.io/not-ready Exists node.kubernetes.io/unreachable Exists]" &&
		got != "[b Exists node.kubernetes.io/not-ready Exists node.kubernetes.io/unreachable Exists a Exists]" {
		t.Errorf("tolerations %s", got)
	}
	refused(t, "other overhead", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: with(func(p *corev1.Pod) { p.Spec.Overhead = list("cpu=1") })}), "Pod's Overhead doesn't match")
	refused(t, "conflict", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: with(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"sandbox": "no"} })}),
		"conflict: runtimeClass.scheduling.nodeSelector[sandbox] = yes; pod.spec.nodeSelector[sandbox] = no")
	refused(t, "overhead alone", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: pod(func(p *corev1.Pod) { p.Spec.Overhead = list("cpu=1") })}), "Pod Overhead set without corresponding")
	none := "none"
	refused(t, "no class", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: pod(func(p *corev1.Pod) { p.Spec.RuntimeClassName = &none })}), `RuntimeClass "none" not found`)
}

func TestPodResize(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	servertest.Put(t, c.store, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Allocatable: list("cpu=2 memory=1Gi")}})
	on := func(requests string) *corev1.Pod {
		p := sized(requests, "")
		p.Spec.NodeName = "n"
		return p
	}
	ask := func(requests string) error {
		return c.ask(&rest.Admitting{Operation: rest.OpUpdate, Sub: "resize", Object: on(requests), Old: on("cpu=1")})
	}
	refused(t, "fits", ask("cpu=2 memory=1Gi"), "")
	whole := on("cpu=1")
	whole.Spec.Resources = &corev1.ResourceRequirements{Requests: list("cpu=2")}
	ofWhole := &rest.Admitting{Operation: rest.OpUpdate, Sub: "resize", Object: whole, Old: on("cpu=1")}
	refused(t, "as a whole", c.ask(ofWhole), `pod update requires features InPlacePodLevelResourcesVerticalScaling which are not available on node "n"`)
	servertest.Put(t, c.store, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "m"},
		Status: corev1.NodeStatus{Allocatable: list("cpu=2"), DeclaredFeatures: []string{api.ResizesWholePods}}})
	whole.Spec.NodeName = "m"
	refused(t, "as a whole where that is known", c.ask(ofWhole), "")
	whole.Spec.Resources.Requests = list("cpu=3")
	refused(t, "too large as a whole", c.ask(ofWhole), "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000")
	refused(t, "too large", ask("cpu=3 memory=2Gi"), "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000; memory, requested: 2147483648, allocatable: 1073741824")
}

// created is long ago, plus seconds.
func created(seconds int) metav1.Time {
	return metav1.NewTime(time.Date(2020, 1, 1, 0, 0, seconds, 0, time.UTC))
}
