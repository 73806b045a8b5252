package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	configMaps = 20000
	workers    = 16
	namespace  = "bench"
	inBench    = "/api/v1/namespaces/" + namespace + "/configmaps"
)

// target is an API server that is measured: ours, or upstream's beside it.
type target struct {
	config *rest.Config
	client kubernetes.Interface
	pids   func() ([]int, error)
	filled bool // 20,000 ConfigMaps are there
}

// which returns a target, started if it is not.
type which func(context.Context, *bench) (*target, error)

func ours(ctx context.Context, b *bench) (*target, error) {
	if b.own == nil && b.given != "" {
		config, err := clientcmd.BuildConfigFromFlags("", b.given)
		if err != nil {
			return nil, err
		}
		config.QPS = -1
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, err
		}
		b.own = &target{config: config, client: client, pids: func() ([]int, error) { return nil, errNoPeer }}
	}
	if b.given == "" { // other rows' pods would cost time
		if err := b.empty(ctx); err != nil {
			return nil, err
		}
		b.own = cmp.Or(b.own, &target{config: b.config, client: b.client, pids: b.processes})
	}
	return b.own, b.own.namespace()
}

func (t *target) namespace() error {
	for _, name := range []string{namespace, "default"} {
		_, err := t.client.CoreV1().Namespaces().Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"key": "a value that is as long as small values are"}}
}

// fill makes the ConfigMaps that reads are measured with.
func (t *target) fill(ctx context.Context) error {
	if t.filled {
		return nil
	}
	if err := t.empty(ctx); err != nil { // a cluster that was given may have some
		return err
	}
	_, err := t.create(ctx, configMaps)
	t.filled = err == nil
	return err
}

func (t *target) create(ctx context.Context, n int) (time.Duration, error) {
	return load(ctx, t.config, n, func(w *wire, i int) ([]byte, error) {
		body, err := encode(configMap(fmt.Sprintf("c%05d", i)))
		return w.request("POST", inBench, protobuf, body), err
	})
}

// empty deletes what fill and create made.
func (t *target) empty(ctx context.Context) error {
	t.filled = false
	return t.client.CoreV1().ConfigMaps(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
}

func creates(of which) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		t, err := of(ctx, b)
		if err != nil {
			return nil, err
		}
		var v []float64
		for range 3 {
			if err := t.empty(ctx); err != nil {
				return nil, err
			}
			took, err := t.create(ctx, configMaps)
			if err != nil {
				return nil, err
			}
			v = append(v, configMaps/took.Seconds())
		}
		t.filled = true
		return v, nil
	}
}

func gets(of which) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		t, err := filled(ctx, b, of)
		if err != nil {
			return nil, err
		}
		var v []float64
		for range 3 {
			took, err := load(ctx, t.config, configMaps, func(w *wire, i int) ([]byte, error) {
				return w.request("GET", fmt.Sprintf("%s/c%05d", inBench, i), protobuf, nil), nil
			})
			if err != nil {
				return nil, err
			}
			v = append(v, configMaps/took.Seconds())
		}
		return v, nil
	}
}

func filled(ctx context.Context, b *bench, of which) (*target, error) {
	t, err := of(ctx, b)
	if err != nil {
		return nil, err
	}
	return t, t.fill(ctx)
}

func singleCreate(of which) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		t, err := of(ctx, b)
		if err != nil {
			return nil, err
		}
		w, err := dial(ctx, t.config)
		if err != nil {
			return nil, err
		}
		defer w.Close()
		var v []float64
		for i := range 500 {
			body, err := encode(configMap(fmt.Sprintf("single-%d-%d", time.Now().UnixNano(), i)))
			if err != nil {
				return nil, err
			}
			r := w.request("POST", "/api/v1/namespaces/default/configmaps", protobuf, body)
			begin := time.Now()
			if _, err := w.do(r); err != nil {
				return nil, err
			}
			v = append(v, millis(time.Since(begin)))
		}
		return v, nil
	}
}

// list measures until the last byte of the list has arrived; decoding is the client's affair.
func list(of which, accept string) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		t, err := filled(ctx, b, of)
		if err != nil {
			return nil, err
		}
		w, err := dial(ctx, t.config)
		if err != nil {
			return nil, err
		}
		defer w.Close()
		r := w.request("GET", inBench, accept, nil)
		var v []float64
		for range b.runs {
			begin := time.Now()
			n, err := w.do(r)
			if err != nil {
				return nil, err
			}
			if n < configMaps*50 {
				return nil, fmt.Errorf("%d bytes", n)
			}
			v = append(v, millis(time.Since(begin)))
		}
		return v, nil
	}
}

// watchers updates objects, each by a worker of its own, while 100 clients watch all of them.
func watchers(of which) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		t, err := of(ctx, b)
		if err != nil {
			return nil, err
		}
		var v []float64
		for range 3 {
			rate, err := t.watched(ctx)
			if err != nil {
				return nil, err
			}
			v = append(v, rate)
		}
		return v, nil
	}
}

func (t *target) watched(ctx context.Context) (float64, error) {
	const watching, updates = 100, 1008 // a multiple of the workers
	round := time.Now().UnixNano()
	for k := range workers {
		_, err := t.client.CoreV1().ConfigMaps("default").Create(ctx, configMap(fmt.Sprintf("watched-%d-%d", round, k)), metav1.CreateOptions{})
		if err != nil {
			return 0, err
		}
	}
	l, err := t.client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, err
	}
	var seen atomic.Int64
	var all sync.WaitGroup
	failed := make(chan error, watching)
	for range watching {
		w, err := dial(ctx, t.config)
		if err != nil {
			return 0, err
		}
		defer w.Close()
		if _, err := w.Write(w.request("GET", "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion="+l.ResourceVersion, "application/json", nil)); err != nil {
			return 0, err
		}
		if status, _, err := w.head(); err != nil || status != 200 {
			return 0, fmt.Errorf("watch: %d %v", status, err)
		}
		all.Go(func() {
			n, err := w.events(updates)
			seen.Add(int64(n))
			if err != nil {
				failed <- fmt.Errorf("after %d events: %w", n, err)
			}
		})
	}
	begin := time.Now()
	_, err = load(ctx, t.config, updates, func(w *wire, i int) ([]byte, error) {
		name := fmt.Sprintf("watched-%d-%d", round, i%workers)
		cm := configMap(name)
		cm.Data["n"] = fmt.Sprint(i)
		body, err := encode(cm)
		return w.request("PUT", "/api/v1/namespaces/default/configmaps/"+name, protobuf, body), err
	})
	if err != nil {
		return 0, err
	}
	all.Wait()
	took := time.Since(begin)
	select {
	case err := <-failed:
		return 0, err
	default:
		return float64(seen.Load()) / took.Seconds(), nil
	}
}

// events reads a watch in JSON until it has brought n events, or the server ends it. The server may cut an event into several chunks, as
// upstream's does where events come faster than they are read.
func (w *wire) events(n int) (seen int, err error) {
	in := httputil.NewChunkedReader(w.in)
	begin := []byte(`{"type":"`)
	buf := make([]byte, 64<<10)
	kept := 0
	for seen < n {
		m, err := io.ReadAtLeast(in, buf[kept:], 1)
		if err != nil {
			return seen, err
		}
		got := buf[:kept+m]
		seen += bytes.Count(got, begin)
		// An event's beginning may be cut by the end of what was read.
		kept = copy(buf, got[max(0, len(got)-len(begin)+1):])
	}
	return seen, nil
}

func memoryOf(of which) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		t, err := filled(ctx, b, of)
		if err != nil {
			return nil, err
		}
		select {
		case <-time.After(10 * time.Second): // a server gives back what a burst took when it has come to rest
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		m, err := memory(t.pids)
		return []float64{m}, err
	}
}

func deleteCollection(of which) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		t, err := filled(ctx, b, of)
		if err != nil {
			return nil, err
		}
		w, err := dial(ctx, t.config)
		if err != nil {
			return nil, err
		}
		defer w.Close()
		r := w.request("DELETE", inBench, protobuf, nil)
		begin := time.Now()
		_, err = w.do(r)
		t.filled = false
		return []float64{seconds(time.Since(begin))}, err
	}
}
