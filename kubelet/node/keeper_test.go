package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/kubelettest"
)

// The Node has the volumes that are in use before it is told so to who mounts them, and gives none back where not all are known.
func TestVolumesInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := kubelettest.NewAPI()
		written := func() []corev1.UniqueVolumeName {
			n, err := client.Get[*corev1.Node](t.Context(), a, api.Key{Name: "n1"})
			if err != nil {
				t.Error(err)
				return nil
			}
			return n.Status.VolumesInUse
		}
		var mu sync.Mutex
		var used, reported []corev1.UniqueVolumeName
		var unknown error
		c := Config{Name: "n1", Addresses: []string{"10.0.0.1"}, MaxPods: 10, Root: t.TempDir(),
			InUse: func() ([]corev1.UniqueVolumeName, error) {
				mu.Lock()
				defer mu.Unlock()
				return slices.Clone(used), unknown
			},
			Reported: func(names []corev1.UniqueVolumeName) {
				got := written()
				if slices.ContainsFunc(names, func(n corev1.UniqueVolumeName) bool { return !slices.Contains(got, n) }) {
					t.Errorf("reported %v, and the Node has %v", names, got)
				}
				mu.Lock()
				defer mu.Unlock()
				reported = names
			}}
		k := New(c, a, cri.InProcess(kubelettest.NewRuntime()), slog.New(slog.NewTextHandler(t.Output(), nil)), func() {})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = k.Run(ctx, func() {}) }()
		for _, step := range []struct {
			used    []corev1.UniqueVolumeName
			unknown error
			want    []corev1.UniqueVolumeName
		}{{}, {used: []corev1.UniqueVolumeName{"a", "b"}, want: []corev1.UniqueVolumeName{"a", "b"}},
			{used: []corev1.UniqueVolumeName{"b", "c"}, unknown: errors.New("unreadable"), want: []corev1.UniqueVolumeName{"a", "b", "c"}}, {}} {
			synctest.Wait()
			mu.Lock()
			used, unknown, reported = step.used, step.unknown, []corev1.UniqueVolumeName{"before"}
			mu.Unlock()
			k.Poke()
			synctest.Wait()
			mu.Lock()
			if got := written(); !slices.Equal(got, step.want) || !slices.Equal(reported, step.used) {
				t.Errorf("%+v: the Node has %v, reported %v", step, got, reported)
			}
			mu.Unlock()
		}
		cancel()
		<-done
	})
}
