package pod

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestImagePulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		var fail atomic.Bool
		fail.Store(true)
		b.runtime.Pull = func(string) error {
			time.Sleep(time.Second)
			if fail.Load() {
				return errors.New("registry is down")
			}
			return nil
		}
		b.api.Put(newPod("a", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "far" }))
		b.wantStatus("a", "Pending app=ContainerCreating")
		time.Sleep(1100 * time.Millisecond)
		b.settle()
		// The failure shows as an error first, then as a wait.
		if got := short(b.pod("a")); got != "Pending app=ErrImagePull" && got != "Pending app=ImagePullBackOff" {
			t.Fatal(got)
		}
		time.Sleep(11 * time.Second)
		b.settle()
		fail.Store(false)
		time.Sleep(21 * time.Second)
		b.wantStatus("a", "Running ready app=running")
		fails := []string{`Normal a spec.containers{app} Pulling: Pulling image "far"`, `Warning a spec.containers{app} Failed: Failed to pull image "far": registry is down`, "Warning a spec.containers{app} Failed: Error: ErrImagePull",
			`Normal a spec.containers{app} BackOff: Back-off pulling image "far"`, "Warning a spec.containers{app} Failed: Error: ImagePullBackOff"}
		// After the second failure it waits for 20 s, and says so twice.
		want := append(slices.Concat(fails, fails, fails[3:]), `Normal a spec.containers{app} Pulling: Pulling image "far"`, `Normal a spec.containers{app} Pulled: Successfully pulled image "far" in 1s`,
			"Normal a spec.containers{app} Created: Container created", "Normal a spec.containers{app} Started: Container started")
		if got := b.api.Events(); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
	})
}

// While the image of a volume is missing, nothing is said of the one that is there.
func TestMissingImageVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		var fail atomic.Bool
		fail.Store(true)
		b.runtime.Pull = func(string) error {
			if fail.Load() {
				return errors.New("registry is down")
			}
			return nil
		}
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "far", PullPolicy: corev1.PullIfNotPresent}}}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
		}))
		time.Sleep(25 * time.Second)
		b.wantStatus("a", "Pending app=ImagePullBackOff")
		fails := []string{`Normal a Pulling: Pulling image "far"`, `Warning a Failed: Failed to pull image "far": registry is down`, "Warning a Failed: Error: ErrImagePull",
			`Normal a BackOff: Back-off pulling image "far"`, "Warning a Failed: Error: ImagePullBackOff"}
		if got, want := b.api.Events(), slices.Concat(fails, fails, fails[3:]); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
		fail.Store(false)
		time.Sleep(10 * time.Second)
		b.wantStatus("a", "Running ready app=running")
		want := []string{`Normal a Pulling: Pulling image "far"`, `Normal a Pulled: Successfully pulled image "far" in 0s`,
			`Normal a spec.containers{app} Pulled: Container image "app" already present on machine`,
			"Normal a spec.containers{app} Created: Container created", "Normal a spec.containers{app} Started: Container started"}
		if got := b.api.Events(); !slices.Equal(got, want) {
			t.Errorf("events %q", got)
		}
	})
}

func TestNeverPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.api.Put(newPod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = "far", corev1.PullNever
		}))
		b.wantStatus("a", "Pending app=ErrImageNeverPull")
		time.Sleep(40 * time.Second)
		b.wantStatus("a", "Pending app=ErrImageNeverPull")
		want := []string{`Warning a spec.containers{app} ErrImageNeverPull: Container image "far" is not present with pull policy of Never`, "Warning a spec.containers{app} Failed: Error: ErrImageNeverPull"}
		if got := b.api.Events(); !slices.Equal(got, slices.Repeat(want, 6)) { // after 0, 1, 3, 7, 15 and 31 seconds
			t.Errorf("events %q", got)
		}
		// Somebody brings it.
		if _, err := b.pods.cri.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "far"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		b.wantStatus("a", "Running ready app=running")
	})
}
