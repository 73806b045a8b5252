package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	podCount     = 50
	podsTogether = 100
)

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"bench": "pod"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "hello", Image: "hello:1", Args: []string{"idle"}}},
		},
	}
}

// empty makes the shared cluster one without pods: those that other rows have left are deleted.
func (b *bench) empty(ctx context.Context) error {
	if err := b.cluster(); err != nil {
		return err
	}
	b.pods = nil
	pods := b.client.CoreV1().Pods("default")
	ours := metav1.ListOptions{LabelSelector: "bench=pod"}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{}, ours); err != nil {
			return err
		}
		left, err := pods.List(ctx, ours)
		if err != nil || len(left.Items) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("two minutes were not enough to delete %d pods", len(left.Items))
		}
	}
}

// until watches pods from now on and returns a function that waits until done says so.
func (b *bench) until(ctx context.Context, done func(watch.Event) bool) (wait func() error, err error) {
	w, err := b.client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{LabelSelector: "bench=pod"})
	if err != nil {
		return nil, err
	}
	return func() error {
		defer w.Stop()
		limit := time.After(2 * time.Minute)
		for {
			select {
			case e, ok := <-w.ResultChan():
				if !ok {
					return fmt.Errorf("the watch ended")
				}
				if done(e) {
					return nil
				}
			case <-limit:
				return fmt.Errorf("two minutes were not enough")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}, nil
}

func podsOneByOne(ctx context.Context, b *bench) ([]float64, error) {
	if err := b.empty(ctx); err != nil {
		return nil, err
	}
	var v []float64
	var names []string
	for i := range podCount {
		name := fmt.Sprintf("one-%d", i)
		wait, err := b.until(ctx, func(e watch.Event) bool {
			p := e.Object.(*corev1.Pod)
			return p.Name == name && p.Status.Phase == corev1.PodRunning
		})
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		if _, err := b.client.CoreV1().Pods("default").Create(ctx, pod(name), metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		if err := wait(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		v = append(v, millis(time.Since(begin)))
		names = append(names, name)
	}
	b.pods = names
	return v, nil
}

func deleteOneByOne(ctx context.Context, b *bench) ([]float64, error) {
	if len(b.pods) != podCount {
		if _, err := podsOneByOne(ctx, b); err != nil {
			return nil, err
		}
	}
	var v []float64
	for _, name := range b.pods {
		wait, err := b.until(ctx, func(e watch.Event) bool {
			return e.Type == watch.Deleted && e.Object.(*corev1.Pod).Name == name
		})
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := b.client.CoreV1().Pods("default").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return nil, err
		}
		if err := wait(); err != nil {
			return nil, err
		}
		v = append(v, millis(time.Since(begin)))
	}
	b.pods = nil
	return v, nil
}

func podsAtOnce(ctx context.Context, b *bench) ([]float64, error) {
	if err := b.empty(ctx); err != nil {
		return nil, err
	}
	running := map[string]bool{}
	wait, err := b.until(ctx, func(e watch.Event) bool {
		if p := e.Object.(*corev1.Pod); p.Status.Phase == corev1.PodRunning {
			running[p.Name] = true
		}
		return len(running) == podsTogether
	})
	if err != nil {
		return nil, err
	}
	var names []string
	begin := time.Now()
	for i := range podsTogether {
		name := fmt.Sprintf("many-%d", i)
		if _, err := b.client.CoreV1().Pods("default").Create(ctx, pod(name), metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	if err := wait(); err != nil {
		return nil, fmt.Errorf("%d of %d run: %w", len(running), podsTogether, err)
	}
	took := time.Since(begin)
	b.pods = names
	return []float64{seconds(took)}, nil
}

func deleteAtOnce(ctx context.Context, b *bench) ([]float64, error) {
	if len(b.pods) != podsTogether {
		if _, err := podsAtOnce(ctx, b); err != nil {
			return nil, err
		}
	}
	left := len(b.pods)
	wait, err := b.until(ctx, func(e watch.Event) bool {
		if e.Type == watch.Deleted {
			left--
		}
		return left == 0
	})
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := b.client.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "bench=pod"}); err != nil {
		return nil, err
	}
	if err := wait(); err != nil {
		return nil, fmt.Errorf("%d are left: %w", left, err)
	}
	b.pods = nil
	return []float64{seconds(time.Since(begin))}, nil
}
