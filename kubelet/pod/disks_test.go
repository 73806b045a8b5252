package pod

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/csi"
	"github.com/yare-dev/yare/csi/csitest"
	"github.com/yare-dev/yare/kubelet/volume"
)

// registered are the drivers of the node: one, or none.
type registered struct{ d *csitest.Driver }

func (r *registered) Driver(string) (csi.Node, error) {
	if r.d == nil {
		return nil, errors.New("driver name d not found in the list of registered CSI drivers")
	}
	return r.d.Client(), nil
}

// diskBed is a bed with a claim "c" of a volume "h" of a driver.
func diskBed(t *testing.T, on *registered, attach bool) *bed {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	c := api.PersistentVolumeClaimKind.New().(*corev1.PersistentVolumeClaim)
	c.Namespace, c.Name, c.UID, c.Annotations = "default", "c", "claim-uid", map[string]string{claim.Completed: "yes"}
	c.Spec.VolumeName, c.Status.Phase = "pv", corev1.ClaimBound
	pv := api.PersistentVolumeKind.New().(*corev1.PersistentVolume)
	pv.Name = "pv"
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "h"}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "c", UID: "claim-uid"}
	o := api.CSIDriverKind.New().(*storagev1.CSIDriver)
	o.Name, o.Spec.AttachRequired = "d", &attach
	b := newBed(t, c, pv, o)
	b.stop()
	b.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	b.disks = volume.Disks{Dir: filepath.Join(b.dir, "plugins"), Node: "n1", Boot: "boot", Drivers: on}
	b.start()
	return b
}

func withClaim(p *corev1.Pod) {
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
}

func wantCalls(t *testing.T, d *csitest.Driver, want ...string) {
	t.Helper()
	if got := d.Calls(); !slices.Equal(got, want) {
		t.Errorf("calls %v, want %v", got, want)
	}
}

// A pod waits for a driver, and starts as soon as there is one; it is gone when the driver has taken its volume back, however long that takes.
func TestDiskOfPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on := &registered{}
		b := diskBed(t, on, false)
		b.api.Put(newPod("a", withClaim))
		b.settle()
		time.Sleep(20 * time.Minute)
		b.wantRunning()
		e := b.api.Events()
		if len(e) < 40 || len(e) > 50 {
			t.Error("tries in twenty minutes, the longest thirty seconds apart:", len(e))
		}
		if e := strings.Join(e, "\n"); !strings.Contains(e, `FailedMount: MountVolume.SetUp failed for volume "v" : persistentvolume "pv": driver name d not found`) {
			t.Error(e)
		}
		on.d = csitest.New("d", t.TempDir())
		b.pods.RefreshAll()
		b.wantRunning("app")
		wantCalls(t, on.d, "Stage h", "Publish h")
		fails := 3
		on.d.Hook = func(call, _ string, _ bool) error {
			if fails--; fails >= 0 {
				return errors.New("busy")
			}
			return nil
		}
		b.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 5)
		b.wantRunning()
		if b.pod("a") == nil {
			t.Error("the pod is gone before its volume is back")
		}
		time.Sleep(time.Minute)
		b.settle()
		b.wantGone("a")
		if broken := on.d.Broken(); len(broken) > 0 {
			t.Error(broken)
		}
	})
}

// A pod that is deleted while its driver mounts ends that first, and undoes it.
func TestDiskOfPodThatEndsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on := &registered{d: csitest.New("d", t.TempDir())}
		b := diskBed(t, on, false)
		on.d.Hook = func(call, _ string, done bool) error {
			if call == "Stage" && done {
				time.Sleep(time.Minute)
				return errors.New("too late")
			}
			return nil
		}
		b.api.Put(newPod("a", withClaim))
		b.settle()
		b.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 5)
		b.settle()
		wantCalls(t, on.d, "Stage h")
		time.Sleep(time.Minute)
		b.settle()
		wantCalls(t, on.d, "Unpublish h", "Unstage h")
		b.wantGone("a")
		if broken := on.d.Broken(); len(broken) > 0 {
			t.Error(broken)
		}
	})
}

// A volume that has to be attached is waited for without a word, as whoever attaches it has the say.
func TestDiskIsAttached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on := &registered{d: csitest.New("d", t.TempDir())}
		b := diskBed(t, on, true)
		b.api.Put(newPod("a", withClaim))
		b.settle()
		time.Sleep(time.Minute)
		b.wantRunning()
		wantCalls(t, on.d)
		if e := b.api.Events(); slices.ContainsFunc(e, func(s string) bool { return strings.Contains(s, "FailedMount") }) {
			t.Error(e)
		}
		used, err := b.pods.Volumes.InUse()
		if err != nil || len(used) != 1 {
			t.Fatal(used, err)
		}
		a := api.VolumeAttachmentKind.New().(*storagev1.VolumeAttachment)
		a.Name, a.Status.Attached = "csi-8e3bb36fda804646cae96ea9b03b4b77d9b692e45ea0ddda23cccc30a6b1c3fe", true // by volume, driver and node
		b.api.Put(a)
		n := b.node.DeepCopy()
		b.pods.Volumes.Reported(used)
		n.Status.VolumesAttached = []corev1.AttachedVolume{{Name: used[0]}}
		b.later.Store(n)
		b.pods.WakeAll() // as the Node's change does
		b.wantRunning("app")
		b.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 5)
		b.settle()
		b.wantGone("a")
		if used, err = b.pods.Volumes.InUse(); err != nil || len(used) > 0 {
			t.Error(used, err)
		}
	})
}
