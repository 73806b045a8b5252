package kubelet

import (
	"maps"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/yare-dev/yare/kubelet/eviction"
	"github.com/yare-dev/yare/linux/diskusage"
)

// A pod whose files take for ever to be counted holds up nobody else's limit, nor an eviction, which takes what was counted last.
func TestOneIsMeasuredForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		counted := make(chan struct{})
		volumes := func(mib int64) *onDisk { return &onDisk{volumes: map[string]diskusage.Usage{"v": {Bytes: mib << 20}}} }
		var walks int
		h.before = func(k *Kubelet) {
			k.meter.measure = func(p *corev1.Pod) *onDisk {
				if p.Name != "hog" {
					return volumes(2)
				}
				if walks++; walks > 1 {
					<-counted
				}
				return volumes(0)
			}
		}
		defer close(counted)
		<-h.start()
		limited := func(name string, mib int64) *corev1.Pod {
			p := newPod(name)
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
				SizeLimit: resource.NewQuantity(mib<<20, resource.BinarySI)}}}}
			return p
		}
		h.api.Put(limited("hog", 1))
		h.api.Put(limited("little", 3))
		time.Sleep(3 * measureEvery)
		h.api.Put(limited("much", 1))
		time.Sleep(measureEvery + time.Second)
		if got := h.phases("hog", "little", "much"); got != "hog Running, little Running, much Failed Evicted" {
			t.Error(got)
		}
		if walks != 2 {
			t.Error("the hog is walked through at a time:", walks-1)
		}
		began := time.Now()
		all, err := h.kubelet.measure(t.Context(), h.kubelet.pods.Evictable(), eviction.Parts{Volumes: true})
		got := map[string]int64{}
		for _, c := range all {
			got[c.Pod.Name] = c.Usage.Volumes.Bytes >> 20
		}
		if want := map[string]int64{"hog": 0, "little": 2}; err != nil || !maps.Equal(got, want) || time.Since(began) != measuredWithin {
			t.Error(got, err, time.Since(began))
		}
	})
}
