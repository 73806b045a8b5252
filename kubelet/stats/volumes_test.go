package stats

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/yare-dev/yare/kubelet/volume"
)

// Volumes are measured once a minute; a driver that does not answer takes its limit from those that come after it, once.
func TestVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "a"}}, {ObjectMeta: metav1.ObjectMeta{Name: "b", UID: "b"}}}
		asked, hangs := 0, false
		var failed []string
		used, ill := uint64(7), true
		v := &Volumes{Pods: func() []*corev1.Pod { return pods }, Failed: func(p *corev1.Pod, err error) { failed = append(failed, p.Name+" "+err.Error()) },
			Measure: func(ctx context.Context, p *corev1.Pod) ([]volume.Stats, error) {
				asked++
				if hangs {
					<-ctx.Done()
					return nil, errors.New("no answer")
				}
				return []volume.Stats{{VolumeStats: statsapi.VolumeStats{Name: "v", PVCRef: &statsapi.PVCReference{Namespace: "n", Name: "c"},
					FsStats: statsapi.FsStats{UsedBytes: &used}}, Abnormal: &ill}}, nil
			}}
		if got := v.All(t.Context()); len(got) != 2 || asked != 2 || got["a"][0].Name != "v" {
			t.Error(got, asked)
		}
		time.Sleep(volumesAge - time.Second)
		if v.All(t.Context()); asked != 2 {
			t.Error("asked again:", asked)
		}
		registry := prometheus.NewRegistry()
		if err := registry.Register(NewClaims(t.Context(), v)); err != nil {
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
		hangs = true
		begin := time.Now()
		got := v.All(t.Context())
		if time.Since(begin) != volumesLimit || asked != 3 || len(got["a"]) != 0 || len(got["b"]) != 1 {
			t.Error(time.Since(begin), asked, got)
		}
		if len(failed) != 1 || failed[0] != "a no answer" {
			t.Error(failed)
		}
	})
}
