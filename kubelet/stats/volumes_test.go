package stats

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/yare-dev/yare/kubelet/volume"
)

// Volumes are measured once a minute; who hangs is asked once at a time, and takes nobody's figures.
func TestVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "a"}}, {ObjectMeta: metav1.ObjectMeta{Name: "b", UID: "b"}}}
		var asked atomic.Int32
		hangs := make(chan struct{})
		var failed []string
		used, ill := uint64(7), true
		v := &Volumes{Context: t.Context(), Pods: func() []*corev1.Pod { return pods }, Failed: func(p *corev1.Pod, err error) { failed = append(failed, p.Name+" "+err.Error()) },
			Measure: func(_ context.Context, p *corev1.Pod) ([]volume.Stats, error) {
				if asked.Add(1) > 2 && p.Name == "a" { // and heeds no limit
					<-hangs
					return nil, errors.New("no answer")
				}
				return []volume.Stats{{VolumeStats: statsapi.VolumeStats{Name: "v", PVCRef: &statsapi.PVCReference{Namespace: "n", Name: "c"},
					FsStats: statsapi.FsStats{UsedBytes: &used}}, Abnormal: &ill}}, nil
			}}
		if got := v.All(t.Context()); len(got) != 2 || asked.Load() != 2 || got["a"][0].Name != "v" {
			t.Error(got, asked.Load())
		}
		time.Sleep(volumesAge - time.Second)
		if v.All(t.Context()); asked.Load() != 2 {
			t.Error("asked again:", asked.Load())
		}
		registry := prometheus.NewRegistry()
		if err := registry.Register(NewClaims(v)); err != nil {
			t.Fatal(err)
		}
		families, err := registry.Gather()
		var names []string
		for _, f := range families {
			names = append(names, f.GetName())
		}
		if got := strings.Join(names, " "); err != nil || got != "kubelet_volume_stats_health_status_abnormal kubelet_volume_stats_used_bytes" {
			t.Error(got, err)
		}
		time.Sleep(time.Second)
		for i, c := range []struct{ pause, wait time.Duration }{{0, volumesWait}, {0, 0}, {volumesAge, 0}} {
			time.Sleep(c.pause)
			begin, want := time.Now(), int32(4+i/2) // b's are taken anew after a minute, a's not while they are being taken
			got := v.All(t.Context())
			if time.Since(begin) != c.wait || asked.Load() != want || len(got["a"]) != 1 || len(got["b"]) != 1 {
				t.Error(i, time.Since(begin), asked.Load(), got)
			}
		}
		close(hangs)
		synctest.Wait()
		if got := v.All(t.Context()); len(got["a"]) != 0 || len(got["b"]) != 1 || len(failed) != 1 || failed[0] != "a no answer" {
			t.Error(got, failed)
		}
	})
}
