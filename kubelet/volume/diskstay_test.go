package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Volumes that come to be in use at once are all told, and stay reported once they are.
func TestInUseTogether(t *testing.T) {
	for range 50 {
		var told atomic.Int32
		v := New(t.TempDir(), Disks{Changed: func() { told.Add(1) }})
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range 64 {
			d := &disk{Name: fmt.Sprint(i), Handle: fmt.Sprint(i), Driver: "d", Attachment: "a"}
			wg.Go(func() {
				<-start
				if err := v.change(func(all map[held]*disk) { all[held{"u", d.Name}] = d }); err != nil {
					t.Error(err)
				}
				v.Reported([]corev1.UniqueVolumeName{d.uniqueName()})
			})
		}
		close(start)
		wg.Wait()
		used, err := v.InUse()
		if err != nil || len(used) != 64 || told.Load() != 64 {
			t.Fatal(used, told.Load(), err)
		}
		for _, name := range used {
			if !v.isReported(name) {
				t.Fatal("it was thrown away:", name)
			}
		}
	}
}

// A pod's own volume under the name of a PersistentVolume that it has too is refused, and takes nothing from that.
func TestDiskNameTwice(t *testing.T) {
	s := newDisks(t)
	s.drive.Spec.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral, storagev1.VolumeLifecyclePersistent}
	s.p.Spec.Volumes = append(s.p.Spec.Volumes, corev1.Volume{Name: "pv-c", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "d"}}})
	for range 2 {
		err := s.mount("u1")
		if want := fmt.Sprintf("the pod has volume kubernetes.io/csi/d^h under the name pv-c, which volume kubernetes.io/csi/d^%s has too", ownHandle("u1", "pv-c")); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	s.wantCalls("Stage h", "Publish h")
	s.mustDown("u1")
	s.wantNothing()
}

// A volume that is up stays so whatever comes in the way of looking after it, also for a kubelet that was started since.
func TestDiskStays(t *testing.T) {
	s := newDisks(t)
	s.drive.Spec.RequiresRepublish = new(true)
	s.mustMount("u1")
	s.d.Calls()
	for name, broken := range map[string]func() (mend func()){
		"the driver refuses": func() func() {
			s.d.Hook = func(string, string, bool) error { return errors.New("no") }
			return func() { s.d.Hook = nil }
		},
		"it is not attached": func() func() {
			s.drive.Spec.AttachRequired = nil
			return func() { s.drive.Spec.AttachRequired = new(false) }
		},
		"no API for the claim": func() func() {
			have := s.o.volumes
			s.o.volumes = nil
			return func() { s.o.volumes = have }
		},
	} {
		for _, restarts := range []bool{false, true} {
			if restarts && name == "no API for the claim" {
				continue // a kubelet that is started needs to be told which volume is the claim's
			}
			if restarts {
				s.restart()
			}
			for _, c := range s.v.claims["u1"] {
				c.again, c.published = time.Unix(1, 0), time.Unix(1, 0)
			}
			s.o.warnings = nil
			mend := broken()
			s.mustMount("u1")
			mend()
			if next := s.v.Next(s.pod("u1")); next.Before(time.Now()) || next.After(time.Now().Add(lookEvery)) || !s.v.Mounted(s.pod("u1")) {
				t.Error(name, "looked after at", next)
			}
			if told := len(s.o.warnings) == 1 && strings.Contains(s.o.warnings[0], "FailedMount volume"); told == (name == "it is not attached") {
				t.Error(name, s.o.warnings)
			}
		}
	}
	s.mustDown("u1")
	s.wantNothing()
}

// What upstream's kubelet has written down is undone with its driver, and is in use until then.
func TestDiskOfUpstream(t *testing.T) {
	s := newDisks(t)
	s.mustMount("u1")
	file := filepath.Join(s.v.diskDir("u1", "pv-c"), recordFile)
	text := `{"attachmentID":"csi-9072ed11cc1acb5fa433a877ff339b6311d013f33bddd1d0092711a8ace5b16d","driverName":"d","nodeName":"n",` +
		`"seLinuxMountContext":"","specVolID":"pv-c","volumeHandle":"h","volumeLifecycleMode":"Persistent"}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if used, err := s.v.InUse(); err != nil || !slices.Equal(used, []corev1.UniqueVolumeName{"kubernetes.io/csi/d^h"}) {
		t.Error(used, err)
	}
	s.d.Calls()
	s.mustDown("u1")
	s.wantCalls("Unpublish h", "Unstage h")
	s.wantNothing()
	if own := (&disk{Attachment: "csi-1", Lifecycle: "Ephemeral"}); own.attached() {
		t.Error("a pod's own volume is attached")
	}
}

// A record that cannot be read holds up its own pod, and those that may have the same volume, but no others; until it is mended.
func TestDiskUnreadable(t *testing.T) {
	s := newDisks(t)
	s.mustMount("u1")
	s.mustMount("u2")
	file := filepath.Join(s.v.diskDir("u1", "pv-c"), recordFile)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := disk{Name: "other", Handle: "o", Driver: "d", Uncalled: true, Attachment: "a"}
	if err := errors.Join(s.v.save("u3", &other), os.WriteFile(file, []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if used, err := s.v.InUse(); err == nil || len(used) != 1 {
		t.Error(used, err)
	}
	s.mustDown("u3")
	s.mustDown("none")
	for _, uid := range []types.UID{"u1", "u2"} {
		if err := s.v.Down(t.Context(), uid); err == nil || !strings.Contains(err.Error(), file) {
			t.Error(uid, err)
		}
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	s.mustDown("u1")
	s.mustDown("u2")
	s.wantNothing()
}
