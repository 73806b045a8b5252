package reconciletest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
	"github.com/yare-dev/yare/run"
)

// Deps returns what controllers on c need.
func Deps(t testing.TB, c client.Client) reconcile.Deps {
	return reconcile.Deps{Client: c, Informers: reconcile.NewInformers(c),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

// Start runs components until the test ends, the informers of d among them. It must be called inside a
// synctest bubble.
func Start(t testing.TB, d reconcile.Deps, cs ...run.Component) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- run.Together("test", append([]run.Component{d.Informers}, cs...)...).Run(ctx, func() {})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Kubelet returns a component that places pods without a node on "n1", runs them at once, makes them ready, and
// removes them when they are deleted.
func Kubelet(c client.Client) run.Component {
	return KubeletWhere(c, func(*corev1.Pod) bool { return true })
}

// KubeletWhere is Kubelet for the pods that pick selects.
func KubeletWhere(c client.Client, pick func(*corev1.Pod) bool) run.Component {
	return run.Func("kubelet", func(ctx context.Context, ready func()) error {
		ready()
		for e, err := range c.Watch(ctx, api.PodKind, client.Query{}, 0) {
			if err != nil {
				return err
			}
			p, ok := e.Object.(*corev1.Pod)
			if !ok || e.Op == client.Deleted || !pick(p) {
				continue
			}
			kubelet(ctx, c, p)
		}
		return nil
	})
}

// kubelet takes one step with p. Conflicts are followed by an event that brings p back.
func kubelet(ctx context.Context, c client.Client, p *corev1.Pod) {
	now := int64(0)
	switch {
	case p.DeletionTimestamp != nil:
		if api.PodReady(p) {
			SetReady(ctx, c, p, false)
		} else {
			_ = c.Delete(ctx, p, client.DeleteOptions{Grace: &now, AnyRevision: true})
		}
	case p.Spec.NodeName == "":
		_, _ = c.Post(ctx, api.PodKind, api.KeyOf(p), "binding", &corev1.Binding{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Binding"},
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}})
	case p.Status.Phase == corev1.PodPending:
		SetReady(ctx, c, p, true)
	}
}

// SetReady makes p run, ready or not.
func SetReady(ctx context.Context, c client.Client, p *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	_, _ = client.Mutate(ctx, c, p, "status", func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		if p.Status.PodIP == "" {
			p.Status.PodIP = "10.0.0.1"
			p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}}
		}
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status,
			LastTransitionTime: metav1.NewTime(time.Now())}}
	})
}

// Finish ends p with the phase and, for a failure, the exit code of its first container.
func Finish(ctx context.Context, c client.Client, p *corev1.Pod, phase corev1.PodPhase, code int32) error {
	_, err := client.Mutate(ctx, c, p, "status", func(p *corev1.Pod) {
		p.Status.Phase = phase
		p.Status.Conditions = nil
		name := "c"
		if len(p.Spec.Containers) > 0 {
			name = p.Spec.Containers[0].Name
		}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: name, State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.Now()}}}}
	})
	return err
}

// Create creates o, or ends the test.
func Create[T api.Object](t testing.TB, c client.Client, o T) T {
	t.Helper()
	got, err := client.Create(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Get returns the object, or ends the test.
func Get[T api.Object](t testing.TB, c client.Client, namespace, name string) T {
	t.Helper()
	got, err := client.Get[T](t.Context(), c, api.Key{Namespace: namespace, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// List returns all objects of the kind, or ends the test.
func List[T api.Object](t testing.TB, c client.Client) []T {
	t.Helper()
	got, err := client.List[T](t.Context(), c, client.Query{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Mutate changes the current state of the object that o was, or ends the test. A controller that writes at the same
// moment is no obstacle.
func Mutate[T api.Object](t testing.TB, c client.Client, o T, sub string, fn func(T)) T {
	t.Helper()
	for {
		got, err := client.Mutate(t.Context(), c, Get[T](t, c, o.GetNamespace(), o.GetName()), sub, fn)
		switch {
		case err == nil:
			return got
		case !apierrors.IsConflict(err):
			t.Fatal(err)
		}
	}
}

// Delete deletes the object that o was, or ends the test.
func Delete(t testing.TB, c client.Client, o api.Object, opts client.DeleteOptions) {
	t.Helper()
	opts.AnyRevision = true
	if err := c.Delete(t.Context(), o, opts); err != nil {
		t.Fatal(err)
	}
}
