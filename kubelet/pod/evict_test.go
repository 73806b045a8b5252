package pod

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

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
