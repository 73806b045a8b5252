package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/kubelet/static"
)

// staticPod is one as its file gives it; what it is to say of itself makes another of it.
func staticPod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := newPod(name)
	for _, f := range change {
		f(p)
	}
	p.UID = types.UID(fmt.Sprintf("%s-%s-%s", name, p.Spec.RestartPolicy, p.Spec.Containers[0].Name))
	p.Annotations = map[string]string{spec.ConfigSourceAnnotation: "file", spec.ConfigHashAnnotation: string(p.UID)}
	return p
}

func container(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Name = name
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80, Protocol: corev1.ProtocolTCP}}
	}
}

func (h *host) wantRunning(name, container string) *corev1.Pod {
	h.t.Helper()
	p := h.pod(name)
	if s := p.Status.ContainerStatuses; p.Status.Phase != corev1.PodRunning || len(s) != 1 || s[0].Name != container || s[0].State.Running == nil {
		h.t.Fatalf("%s: %s %s %v", name, p.Status.Phase, p.Status.Reason, s)
	}
	return p
}

// An edited static pod has the ports of the one before when that has ended.
func TestEditedStaticPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.runtime.Linger = map[string]time.Duration{"app": 5 * time.Second}
		<-h.start()
		h.kubelet.setStatics([]*corev1.Pod{staticPod("web", container("app"))})
		h.wantRunning("web", "app")
		h.kubelet.setStatics([]*corev1.Pod{staticPod("web", container("other"))})
		synctest.Wait()
		if running := h.runtime.Running(); len(running) != 1 || running["app"] == nil {
			t.Error("while the first ends:", running)
		}
		time.Sleep(5 * time.Second)
		h.wantRunning("web", "other")
	})
}

// Where there are no static pods (any more), mirrors of this node's show nothing.
func TestMirrorsWithoutStaticPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		for _, node := range []string{"n1", "n2"} {
			m := newPod("of-" + node)
			m.Spec.NodeName, m.Annotations = node, map[string]string{spec.ConfigMirrorAnnotation: "x"}
			h.api.Put(m)
		}
		<-h.start()
		synctest.Wait()
		left, err := client.List[*corev1.Pod](t.Context(), h.api, client.Query{})
		if err != nil || len(left) != 1 || left[0].Name != "of-n2" {
			t.Error("pods:", left, err)
		}
	})
}

// A mirror that was there before the kubelet is the one that is written to, unless it says that a static pod has ended of which nothing has
// run: that is of an earlier life. As with all of the folder, this runs in real time.
func TestMirrorsThatWereThereFirst(t *testing.T) {
	for phase, stays := range map[corev1.PodPhase]bool{corev1.PodPending: true, corev1.PodFailed: false, corev1.PodSucceeded: false} {
		t.Run(string(phase), func(t *testing.T) {
			dir := t.TempDir()
			h := newHost(t, func(c *Config) { c.StaticPodPath = dir })
			manifest := []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {restartPolicy: Never, containers: [{name: app, image: app, imagePullPolicy: Never}]}\n")
			if err := os.WriteFile(filepath.Join(dir, "web.yaml"), manifest, 0o600); err != nil {
				t.Fatal(err)
			}
			old, err := static.Decode(manifest, "n1")
			if err != nil {
				t.Fatal(err)
			}
			old.UID, old.Annotations[spec.ConfigMirrorAnnotation], old.Status.Phase = "mirror", old.Annotations[spec.ConfigHashAnnotation], phase
			h.api.Put(old)
			<-h.start()
			p := h.await("the mirror", func(e client.Event) bool { return e.Object.(*corev1.Pod).Status.Phase == corev1.PodRunning })
			if (p.UID == old.UID) != stays {
				t.Errorf("the mirror is %s", p.UID)
			}
		})
	}
}

// What was deleted while pods could not be watched ends, and a mirror that was deleted then is made anew.
func TestPodsDeletedWhileNoneAreWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		<-h.start()
		h.api.Put(newPod("a"))
		h.kubelet.setStatics([]*corev1.Pod{staticPod("web", container("other"))})
		h.wantRunning("a", "app")
		mirror := h.wantRunning("web", "other")
		h.api.Break(api.PodKind)
		synctest.Wait()
		h.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 0)
		h.api.DeletePod(api.Key{Namespace: "default", Name: "web"}, 0)
		time.Sleep(2 * retryEvery)
		synctest.Wait()
		if running := h.runtime.Running(); len(running) != 1 || running["other"] == nil {
			t.Error("running:", running)
		}
		if p := h.wantRunning("web", "other"); p.UID == mirror.UID {
			t.Error("the mirror was not deleted")
		}
	})
}
