package pod

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/spec"
)

func emptyDir(name, limit string, medium corev1.StorageMedium) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		v := corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: medium}}}
		if limit != "" {
			q := resource.MustParse(limit)
			v.EmptyDir.SizeLimit = &q
		}
		p.Spec.Volumes = append(p.Spec.Volumes, v)
	}
}

func storageLimit(name, limit string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := corev1.Container{Name: name}
		if limit != "" {
			c.Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(limit)}
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
}

func TestStorageLimits(t *testing.T) {
	high := int32(2000000000)
	disk, memory := corev1.StorageMediumDefault, corev1.StorageMediumMemory
	for _, c := range []struct {
		name           string
		change         []func(*corev1.Pod)
		volumes, whole bool
	}{
		{"none", []func(*corev1.Pod){emptyDir("v", "", disk)}, false, false},
		{"zero is none", []func(*corev1.Pod){emptyDir("v", "0", disk)}, false, false},
		{"in memory the kernel sees to it", []func(*corev1.Pod){emptyDir("v", "1Mi", memory)}, false, false},
		{"volume", []func(*corev1.Pod){emptyDir("v", "1Mi", disk)}, true, false},
		{"container", []func(*corev1.Pod){storageLimit("c", "1Mi")}, false, true},
		{"both", []func(*corev1.Pod){storageLimit("c", "1Mi"), emptyDir("v", "1Mi", disk)}, true, true},
		{"static", []func(*corev1.Pod){storageLimit("c", "1Mi"), func(p *corev1.Pod) { p.Annotations = map[string]string{spec.ConfigSourceAnnotation: "file"} }}, false, false},
		{"critical", []func(*corev1.Pod){storageLimit("c", "1Mi"), func(p *corev1.Pod) { p.Spec.Priority = &high }}, false, false},
		{"ended", []func(*corev1.Pod){storageLimit("c", "1Mi"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }}, false, false},
	} {
		if volumes, whole := StorageLimits(newPod("a", c.change...)); volumes != c.volumes || whole != c.whole {
			t.Errorf("%s: %v %v, want %v %v", c.name, volumes, whole, c.volumes, c.whole)
		}
	}
}

func TestExceeded(t *testing.T) {
	const mi = 1 << 20
	disk := corev1.StorageMediumDefault
	for _, c := range []struct {
		name    string
		pod     *corev1.Pod
		written Written
		want    string
	}{
		{"nothing written", newPod("a", emptyDir("v", "1Mi", disk), storageLimit("c", "1Mi")), Written{}, ""},
		{"just as much", newPod("a", emptyDir("v", "1Mi", disk)), Written{Volumes: map[string]int64{"v": mi}}, ""},
		{"a volume", newPod("a", emptyDir("u", "1Gi", disk), emptyDir("v", "1Mi", disk)), Written{Volumes: map[string]int64{"u": mi + 1, "v": mi + 1}},
			`Usage of EmptyDir volume "v" exceeds the limit "1Mi". `},
		{"without limit", newPod("a", emptyDir("v", "", disk)), Written{Volumes: map[string]int64{"v": mi}}, ""},
		{"the sum", newPod("a", storageLimit("b", "1Mi"), storageLimit("c", "2Mi"), emptyDir("v", "", disk)),
			Written{Volumes: map[string]int64{"v": mi}, Containers: map[string]int64{"b": mi, "c": mi + 1}},
			"Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "},
		{"a container", newPod("a", storageLimit("b", "1Mi"), storageLimit("c", "2Mi")), Written{Containers: map[string]int64{"b": mi + 1}},
			`Container b exceeded its local ephemeral storage limit "1Mi". `},
		{"each its own", newPod("a", storageLimit("b", "1Mi"), storageLimit("c", "2Mi")), Written{Containers: map[string]int64{"b": mi, "c": 2 * mi}}, ""},
	} {
		if got, limit := Exceeded(c.pod, c.written); got != c.want || (limit == "") != (c.want == "") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestEvict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a"))
		b.wantRunning("app")
		b.api.Events()
		for range 2 { // once is enough
			b.pods.Evict(b.pod("a").UID, Eviction{Message: "It wrote too much. ", Grace: EvictedGrace})
		}
		b.wantRunning()
		b.wantStatus("a", "Failed (Evicted) app=Completed")
		if got := b.pod("a").Status.Message; got != "It wrote too much. " {
			t.Errorf("message %q", got)
		}
		want := []string{"Warning a Evicted: It wrote too much. ", "Normal a spec.containers{app} Killing: Stopping container app"}
		if got := b.api.Events(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("events %q", got)
		}
		// Another kubelet does not bring it back.
		b.stop()
		b.start()
		b.wantRunning()
		b.wantStatus("a", "Failed (Evicted) app=Completed")
	})
}

// A node under pressure takes those pods that upstream's takes.
func TestAdmitUnderPressure(t *testing.T) {
	const memory, disk, pids = corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure
	request := func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m")}
	}
	bear := func(key string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}}
		}
	}
	priority := func(n int32) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.Priority = &n } }
	static := func(p *corev1.Pod) { p.Annotations = map[string]string{spec.ConfigSourceAnnotation: "file"} }
	for _, c := range []struct {
		name     string
		pressure []corev1.NodeConditionType
		change   func(*corev1.Pod)
		want     string
	}{
		{"none", nil, func(*corev1.Pod) {}, ""},
		{"best effort", []corev1.NodeConditionType{memory}, func(*corev1.Pod) {}, "Pod was rejected: The node had condition: [MemoryPressure]. "},
		{"burstable", []corev1.NodeConditionType{memory}, request, ""},
		{"bears it", []corev1.NodeConditionType{memory}, bear(corev1.TaintNodeMemoryPressure), ""},
		{"bears something else", []corev1.NodeConditionType{memory}, bear(corev1.TaintNodeDiskPressure), "Pod was rejected: The node had condition: [MemoryPressure]. "},
		{"disk: burstable", []corev1.NodeConditionType{disk}, request, "Pod was rejected: The node had condition: [DiskPressure]. "},
		{"disk: bears it", []corev1.NodeConditionType{disk}, bear(corev1.TaintNodeDiskPressure), "Pod was rejected: The node had condition: [DiskPressure]. "},
		{"processes", []corev1.NodeConditionType{pids}, request, "Pod was rejected: The node had condition: [PIDPressure]. "},
		{"two", []corev1.NodeConditionType{disk, memory}, bear(corev1.TaintNodeMemoryPressure), "Pod was rejected: The node had condition: [DiskPressure MemoryPressure]. "},
		{"important is not critical", []corev1.NodeConditionType{disk}, priority(1000000000), "Pod was rejected: The node had condition: [DiskPressure]. "},
		{"critical", []corev1.NodeConditionType{disk, memory, pids}, priority(2000000000), ""},
		{"static", []corev1.NodeConditionType{disk, memory, pids}, static, ""},
	} {
		got := ""
		if refused := AdmitUnderPressure(newPod("a", c.change), c.pressure); refused != nil {
			if got = refused.Message; refused.Reason != "Evicted" {
				t.Errorf("%s: reason %s", c.name, refused.Reason)
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Others disrupt pods too: their word stays, but where the kubelet has ended the pod itself.
func TestMergeDisruption(t *testing.T) {
	condition := func(reason string) []corev1.PodCondition {
		return []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason}}
	}
	for _, c := range []struct{ theirs, ours, want string }{
		{"EvictionByEvictionAPI", "", "EvictionByEvictionAPI"}, {"EvictionByEvictionAPI", "EvictionByEvictionAPI", "EvictionByEvictionAPI"},
		{"", corev1.PodReasonTerminationByKubelet, corev1.PodReasonTerminationByKubelet},
		{"EvictionByEvictionAPI", corev1.PodReasonTerminationByKubelet, corev1.PodReasonTerminationByKubelet}, {"", "DeletionByPodGC", ""},
	} {
		var theirs, ours []corev1.PodCondition
		if c.theirs != "" {
			theirs = condition(c.theirs)
		}
		if c.ours != "" {
			ours = condition(c.ours)
		}
		got := ""
		for _, m := range mergeConditions(theirs, ours) {
			got += m.Reason
		}
		if got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// Whoever evicts is told of the end, and a pod is evicted once. Those that must not be are no candidates.
func TestEvictable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		high := int32(2000000000)
		b.runtime.Linger["app"] = 20 * time.Second
		b.api.Put(newPod("a"))
		b.api.Put(newPod("critical", func(p *corev1.Pod) { p.Spec.Priority = &high }))
		b.api.Put(newPod("posed", func(p *corev1.Pod) { p.Annotations = map[string]string{spec.ConfigSourceAnnotation: "file"} }))
		b.api.Put(newPod("deleted"))
		b.settle()
		names := func() (out string) {
			b.settle()
			for _, p := range b.pods.Evictable() {
				out += p.Name + " "
			}
			return out
		}
		if got := names(); got != "a deleted posed " {
			t.Error(got)
		}
		b.api.DeletePod(api.Key{Namespace: "default", Name: "deleted"}, 3600)
		uid := b.pod("a").UID
		begun := time.Now()
		ended := b.pods.Evict(uid, Eviction{Message: "It must go. ", Grace: 10 * time.Second, Pressure: true})
		if ended == nil || b.pods.Evict(uid, Eviction{}) != nil || b.pods.Evict("nobody", Eviction{}) != nil {
			t.Error("evicted more than once, or nobody, or never")
		}
		if got := names(); got != "deleted posed " {
			t.Error(got)
		}
		<-ended
		if took := time.Since(begun); took != 10*time.Second {
			t.Error("it took", took)
		}
		b.wantStatus("a", "Failed (Evicted) app=Error")
		if b.pods.Evict(uid, Eviction{}) != nil {
			t.Error("evicted after its end")
		}
		// What takes its time to be deleted is ended sooner.
		begun = time.Now()
		<-b.pods.Evict(b.pod("deleted").UID, Eviction{Message: "It must go. ", Grace: 5 * time.Second})
		if took := time.Since(begun); took != 5*time.Second {
			t.Error("it took", took)
		}
	})
}
