package kubelet

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/spec"
)

// Whatever a pod writes counts: to a volume, to a log, to its root file system. Who stays below the limit, or has none, stays.
func TestPodsThatWriteTooMuch(t *testing.T) {
	const limit = 1 << 20
	for _, c := range []struct {
		name    string
		limited bool
		write   func(h *host, p *corev1.Pod) (file string)
		layer   uint64
		want    string
	}{
		{"volume", true, func(h *host, p *corev1.Pod) string {
			return filepath.Join(h.config.RootDir, "pods", string(p.UID), "volumes/kubernetes.io~empty-dir/v/file")
		}, 0, "Pod ephemeral local storage usage exceeds"},
		{"volume with a limit of its own", false, func(h *host, p *corev1.Pod) string {
			return filepath.Join(h.config.RootDir, "pods", string(p.UID), "volumes/kubernetes.io~empty-dir/v/file")
		}, 0, "Usage of EmptyDir volume"},
		{"log", true, func(h *host, p *corev1.Pod) string {
			return filepath.Join(spec.LogDirectory(h.config.LogDir, p), "app", "0.log.1")
		}, 0, "Pod ephemeral local storage usage exceeds"},
		{"layer", true, nil, 2 * limit, "Pod ephemeral local storage usage exceeds"},
		{"little", true, nil, limit / 2, ""},
		{"without limit", false, nil, 2 * limit, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				h.runtime.Layer = map[string]uint64{"app": c.layer}
				<-h.start()
				p := newPod("a")
				q := resource.NewQuantity(limit, resource.BinarySI)
				p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
				if c.limited {
					p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: *q}
				} else {
					p.Spec.Volumes[0].EmptyDir.SizeLimit = q
				}
				h.api.Put(p)
				get := func() *corev1.Pod {
					synctest.Wait()
					p, err := client.Get[*corev1.Pod](t.Context(), h.api, api.Key{Namespace: "default", Name: "a"})
					if err != nil {
						t.Fatal(err)
					}
					return p
				}
				if p = get(); p.Status.Phase != corev1.PodRunning {
					t.Fatal(p.Status)
				}
				if c.write != nil {
					if err := os.WriteFile(c.write(h, p), bytes.Repeat([]byte("x"), 2*limit), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(2 * measureEvery)
				p = get()
				if evicted := p.Status.Reason == "Evicted" && p.Status.Phase == corev1.PodFailed; evicted != (c.want != "") || !strings.HasPrefix(p.Status.Message, c.want) {
					t.Errorf("%s %s %q, want %q", p.Status.Phase, p.Status.Reason, p.Status.Message, c.want)
				}
			})
		})
	}
}
