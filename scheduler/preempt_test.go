package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// resident reads "a:10:2@n1 labels": a pod of priority 10 that asks for 2 CPU on n1, younger than those before it.
func resident(text string, age int) (*corev1.Pod, string) {
	text, set, _ := strings.Cut(text, " ")
	text, node, _ := strings.Cut(text, "@")
	parts := strings.Split(text, ":")
	var prio int32
	fmt.Sscan(parts[1], &prio)
	p := makePod(parts[0], requests(parts[2], "1Mi"), func(p *corev1.Pod) {
		p.UID = types.UID(p.Name)
		p.Spec.Priority = &prio
		p.Status.StartTime = &metav1.Time{Time: time.Unix(int64(1000+age), 0)}
	})
	if set != "" {
		p.Labels = map[string]string{"app": set}
	}
	return p, node
}

func TestPreemption(t *testing.T) {
	for _, tt := range []struct {
		name    string
		pods    []string
		pod     string
		allowed int32 // of app=guarded
		change  func(*corev1.Pod)
		want    string
	}{
		{name: "one goes", pods: []string{"a:0:3@n1", "b:20:4@n2"}, pod: "p:10:2", want: "n1: a"},
		{name: "the lower", pods: []string{"a:5:4@n1", "b:0:4@n2"}, pod: "p:10:2", want: "n2: b"},
		{name: "not the equal", pods: []string{"a:10:4@n1", "b:11:4@n2"}, pod: "p:10:2", want: ""},
		{name: "only as many as needed, the least important", pods: []string{"a:1:1@n1", "b:2:1@n1", "c:3:1@n1", "d:4:1@n1", "e:20:4@n2"}, pod: "p:10:2", want: "n1: b a"},
		{name: "of equals the youngest", pods: []string{"a:1:2@n1", "b:1:2@n1", "e:20:4@n2"}, pod: "p:10:2", want: "n1: b"},
		{name: "rather few", pods: []string{"a:1:2@n1", "b:1:2@n1", "c:1:4@n2"}, pod: "p:10:4", want: "n2: c"},
		{name: "of equal nodes the one whose victim runs shortest", pods: []string{"a:1:4@n1", "b:1:4@n2"}, pod: "p:10:4", want: "n2: b"},
		{name: "rather without breaking a budget", pods: []string{"a:1:4@n1 guarded", "b:5:4@n2"}, pod: "p:10:4", want: "n2: b"},
		{name: "a budget that allows it", pods: []string{"a:1:4@n1 guarded", "b:5:4@n2"}, pod: "p:10:4", allowed: 1, want: "n1: a"},
		{name: "a budget is no obstacle where there is no other way", pods: []string{"a:1:4@n1 guarded", "b:20:4@n2"}, pod: "p:10:4", want: "n1: a"},
		{name: "protected ones are spared first", pods: []string{"a:1:2@n1 guarded", "b:5:2@n1", "c:20:4@n2"}, pod: "p:10:2", want: "n1: b"},
		{name: "nobody is large enough", pods: []string{"a:1:4@n1", "b:1:4@n2"}, pod: "p:10:5", want: ""},
		{name: "not where it may not be", pods: []string{"a:1:4@n1", "b:5:4@n2"}, pod: "p:10:4", want: "n2: b",
			change: func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n2"} }},
		{name: "whose neighbours it cannot bear", pods: []string{"a:1:1@n1 noisy", "b:20:4@n2"}, pod: "p:10:1", want: "n1: a",
			change: func(p *corev1.Pod) {
				p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
					{TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "noisy"}}}}}}
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := cluster.New()
			c.SetNamespace("default", nil)
			for _, n := range []string{"n1", "n2"} {
				c.SetNode(makeNode(n))
			}
			before := map[types.UID]string{}
			for i, text := range tt.pods {
				p, node := resident(text, i)
				q, err := c.Pod(p)
				if err != nil {
					t.Fatal(err)
				}
				c.SetPod(q, node)
				before[q.UID] = node
			}
			pod, _ := resident(tt.pod, 0)
			if tt.change != nil {
				tt.change(pod)
			}
			p, err := c.Pod(pod)
			if err != nil {
				t.Fatal(err)
			}
			pl := newPlacer(1)
			if _, f := pl.place(c, p); f == nil {
				t.Fatal("it fits without")
			}
			b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"},
				Spec:   policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "guarded"}}},
				Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: tt.allowed}}
			got := ""
			if best := (&preemptor{pl: pl, c: c, pod: p, budgets: []*budget{newBudget(b)}}).best(); best != nil {
				got = c.Nodes[best.slot].Name + ":"
				for _, v := range best.victims {
					got += " " + v.Name
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			for uid, node := range before {
				if q := c.Placed(uid); q == nil || q.On() != node {
					t.Errorf("%s is not where it was", uid)
				}
			}
		})
	}
}

func important32(n int32) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.Priority = &n } }

// gone removes what was deleted, as a kubelet does when it has ended.
func (b *bench) gone() (names []string) {
	b.t.Helper()
	time.Sleep(time.Second)
	pods, err := client.List[*corev1.Pod](b.t.Context(), b.Client, client.Query{})
	if err != nil {
		b.t.Fatal(err)
	}
	grace := int64(0)
	for _, p := range pods {
		if p.DeletionTimestamp == nil {
			continue
		}
		c := api.PodCondition(p, corev1.DisruptionTarget)
		if c == nil || c.Status != corev1.ConditionTrue || c.Reason != corev1.PodReasonPreemptionByScheduler {
			b.t.Errorf("%s: condition %+v", p.Name, c)
		}
		names = append(names, p.Name)
		if err := b.Delete(b.t.Context(), p, client.DeleteOptions{Grace: &grace}); err != nil {
			b.t.Fatal(err)
		}
	}
	slices.Sort(names)
	return names
}

// A pod for which others have to go waits for their end on the node that it was promised, which nobody less important takes.
func TestPreempts(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.node(makeNode("n1"))
		for _, n := range []string{"a", "b"} {
			b.create(makePod(n, requests("2", "1Gi"), important32(1)))
		}
		time.Sleep(time.Second)
		b.create(&policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "any"},
			Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{}, MaxUnavailable: &intstr.IntOrString{IntVal: 0}}})
		b.create(makePod("high", requests("4", "1Gi"), important32(9)))
		time.Sleep(time.Second)
		if p := b.pod("high"); p.Spec.NodeName != "" || p.Status.NominatedNodeName != "n1" {
			t.Errorf("high is on %q, promised %q", p.Spec.NodeName, p.Status.NominatedNodeName)
		}
		time.Sleep(time.Minute) // the victims take their time
		b.create(makePod("small", requests("1", "1Gi"), important32(5)))
		if got := strings.Join(b.gone(), " "); got != "a b" {
			t.Errorf("%s had to go", got)
		}
		time.Sleep(time.Minute)
		b.expect("high", "n1", "")
		const full = "0/1 nodes are available: 1 Insufficient cpu."
		b.expect("small", "", full)
		b.create(makePod("never", requests("2", "1Gi"), important32(10), func(p *corev1.Pod) { p.Spec.PreemptionPolicy = new(corev1.PreemptNever) }))
		if got := b.gone(); len(got) != 0 {
			t.Errorf("%s had to go for one that preempts nobody", got)
		}
		b.expect("never", "", full)
		// One that is more important takes over what was promised.
		b.create(makePod("more", requests("4", "1Gi"), important32(50)))
		time.Sleep(time.Second)
		b.create(makePod("most", requests("4", "1Gi"), important32(100)))
		time.Sleep(time.Second)
		if more, most := b.pod("more").Status.NominatedNodeName, b.pod("most").Status.NominatedNodeName; more != "" || most != "n1" {
			t.Errorf("more is promised %q, most %q", more, most)
		}
		if got := strings.Join(b.gone(), " "); got != "high" {
			t.Errorf("%s had to go", got)
		}
		time.Sleep(time.Minute)
		b.expect("most", "n1", "")
		if p := b.pod("more"); p.Status.NominatedNodeName != "" {
			t.Errorf("more is still promised %q", p.Status.NominatedNodeName)
		}
	})
}
