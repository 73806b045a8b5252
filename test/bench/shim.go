package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// shimPods share what shims share: the program's text.
const shimPods = 10

// fill makes pods with so many containers each, all running.
func (b *bench) fill(ctx context.Context, pods, containers int) error {
	if err := b.empty(ctx); err != nil {
		return err
	}
	running := map[string]bool{}
	wait, err := b.until(ctx, func(e watch.Event) bool {
		n := 0
		for _, s := range e.Object.(*corev1.Pod).Status.ContainerStatuses {
			if s.State.Running != nil {
				n++
			}
		}
		if n == containers {
			running[e.Object.(*corev1.Pod).Name] = true
		}
		return len(running) == pods
	})
	if err != nil {
		return err
	}
	for i := range pods {
		p := pod(fmt.Sprintf("fill-%d", i))
		one := p.Spec.Containers[0]
		p.Spec.Containers = nil
		for k := range containers {
			one.Name = fmt.Sprint("c", k)
			p.Spec.Containers = append(p.Spec.Containers, one)
		}
		if _, err := b.client.CoreV1().Pods("default").Create(ctx, p, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	if err := wait(); err != nil {
		return fmt.Errorf("%d of %d pods run: %w", len(running), pods, err)
	}
	return nil
}

// shims are all processes but the server.
func (b *bench) shims() ([]int, error) {
	pids, err := b.processes()
	if err != nil {
		return nil, err
	}
	return pids[1:], nil
}

// shimMemory measures what each shim has of memory, shared pages divided among those that share them.
func shimMemory(containers int) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		if err := b.fill(ctx, shimPods, containers); err != nil {
			return nil, err
		}
		shims, err := b.shims()
		if err != nil {
			return nil, err
		}
		if len(shims) != shimPods {
			return nil, fmt.Errorf("%d pods have %d shims", shimPods, len(shims))
		}
		var v []float64
		for _, pid := range shims {
			m, err := memory(func() ([]int, error) { return []int{pid}, nil })
			if err != nil {
				return nil, err
			}
			v = append(v, m)
		}
		return v, b.empty(ctx)
	}
}

// idleFull measures the processor time that processes use while 200 containers do nothing.
func idleFull(of func(*bench) ([]int, error)) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		if err := b.fill(ctx, 40, 5); err != nil {
			return nil, err
		}
		pids, err := of(b)
		if err != nil {
			return nil, err
		}
		rest := func() error {
			select {
			case <-time.After(30 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := rest(); err != nil { // until what the pods' start has caused is over
			return nil, err
		}
		before, err := onProcessor(pids)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := rest(); err != nil {
			return nil, err
		}
		took := time.Since(begin)
		after, err := onProcessor(pids)
		if err != nil {
			return nil, err
		}
		return []float64{100 * (after - before).Seconds() / took.Seconds()}, b.empty(ctx)
	}
}

// onProcessor sums the time that processes have run, which the scheduler counts in nanoseconds.
func onProcessor(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return 0, err
		}
		for _, t := range tasks {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, t.Name()))
			if err != nil {
				return 0, err
			}
			ran, _, _ := strings.Cut(string(text), " ")
			n, err := strconv.ParseInt(ran, 10, 64)
			if err != nil {
				return 0, err
			}
			sum += time.Duration(n)
		}
	}
	return sum, nil
}
