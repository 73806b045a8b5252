package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	if err := b.cluster(); err != nil {
		return nil, err
	}
	var v []float64
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
		b.pods = append(b.pods, name)
	}
	return v, nil
}

func deleteOneByOne(ctx context.Context, b *bench) ([]float64, error) {
	if len(b.pods) == 0 {
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
	if err := b.cluster(); err != nil {
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
	begin := time.Now()
	for i := range podsTogether {
		name := fmt.Sprintf("many-%d", i)
		if _, err := b.client.CoreV1().Pods("default").Create(ctx, pod(name), metav1.CreateOptions{}); err != nil {
			return nil, err
		}
		b.pods = append(b.pods, name)
	}
	if err := wait(); err != nil {
		return nil, fmt.Errorf("%d of %d run: %w", len(running), podsTogether, err)
	}
	return []float64{seconds(time.Since(begin))}, nil
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

// ociRun measures an OCI runtime's command line with a bundle whose program does nothing.
func ociRun(runtime string) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		command := []string{runtime}
		if runtime == "yare" {
			command = []string{b.yare, "oci"}
		} else if _, err := exec.LookPath(runtime); err != nil {
			return nil, fmt.Errorf("not installed")
		}
		bundle, err := os.MkdirTemp("", "yare-bench-bundle-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(bundle)
		if err := makeBundle(bundle, runtime); err != nil {
			return nil, err
		}
		root := filepath.Join(bundle, "state")
		var v []float64
		for i := range 5 * b.runs {
			args := append(command[1:len(command):len(command)], "--root", root, "run", "--bundle", bundle, fmt.Sprintf("bench-%s-%d", runtime, i))
			begin := time.Now()
			if out, err := exec.CommandContext(ctx, command[0], args...).CombinedOutput(); err != nil {
				return nil, fmt.Errorf("%w: %s", err, out)
			}
			v = append(v, millis(time.Since(begin)))
		}
		return v, nil
	}
}

func makeBundle(bundle, runtime string) error {
	bin := filepath.Join(bundle, "rootfs", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is needed: make setup")
	}
	text, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bin, "true"), text, 0o755); err != nil {
		return err
	}
	spec := map[string]any{
		"ociVersion": "1.0.2",
		"process":    map[string]any{"user": map[string]any{"uid": 0, "gid": 0}, "args": []string{"/bin/true"}, "cwd": "/", "env": []string{"PATH=/bin"}},
		"root":       map[string]any{"path": "rootfs"},
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
		},
		"linux": map[string]any{
			"cgroupsPath": "/yare-bench-" + runtime, // one level: what the runtime removes is all that was made
			"namespaces":  []any{map[string]any{"type": "pid"}, map[string]any{"type": "mount"}, map[string]any{"type": "ipc"}, map[string]any{"type": "uts"}, map[string]any{"type": "network"}},
		},
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o644)
}
