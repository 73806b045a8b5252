package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	configMaps = 20000
	workers    = 16
	namespace  = "bench"
)

// protobuf returns a client that speaks protobuf, as Kubernetes' own components do.
func (b *bench) protobuf() (kubernetes.Interface, error) {
	c := rest.CopyConfig(b.config)
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.AcceptContentTypes = c.ContentType
	return kubernetes.NewForConfig(c)
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"key": "a value that is as long as small values are"}}
}

// spread calls f n times by the workers and returns how long that took.
func spread(n int, f func(i int) error) (time.Duration, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	begin := time.Now()
	for range workers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if err := f(int(i)); err != nil {
					once.Do(func() { failed = err })
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(begin), failed
}

// fill makes the ConfigMaps that reads are measured with.
func (b *bench) fill() error {
	if b.configs {
		return nil
	}
	_, err := creates(context.Background(), b)
	return err
}

func creates(ctx context.Context, b *bench) ([]float64, error) {
	if err := b.cluster(); err != nil {
		return nil, err
	}
	c, err := b.protobuf()
	if err != nil {
		return nil, err
	}
	_, err = c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	took, err := spread(configMaps, func(i int) error {
		_, err := c.CoreV1().ConfigMaps(namespace).Create(ctx, configMap(fmt.Sprintf("c%05d", i)), metav1.CreateOptions{})
		return err
	})
	b.configs = err == nil
	return []float64{configMaps / took.Seconds()}, err
}

func gets(ctx context.Context, b *bench) ([]float64, error) {
	if err := b.fill(); err != nil {
		return nil, err
	}
	c, err := b.protobuf()
	if err != nil {
		return nil, err
	}
	took, err := spread(configMaps, func(i int) error {
		_, err := c.CoreV1().ConfigMaps(namespace).Get(ctx, fmt.Sprintf("c%05d", i), metav1.GetOptions{})
		return err
	})
	return []float64{configMaps / took.Seconds()}, err
}

func singleCreate(ctx context.Context, b *bench) ([]float64, error) {
	if err := b.cluster(); err != nil {
		return nil, err
	}
	c, err := b.protobuf()
	if err != nil {
		return nil, err
	}
	var v []float64
	for i := range 500 {
		begin := time.Now()
		_, err := c.CoreV1().ConfigMaps("default").Create(ctx, configMap(fmt.Sprintf("single-%d", i)), metav1.CreateOptions{})
		if err != nil {
			return nil, err
		}
		v = append(v, millis(time.Since(begin)))
	}
	return v, nil
}

// list measures until the last byte of the list has arrived; decoding is the client's affair.
func list(accept string) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		if err := b.fill(); err != nil {
			return nil, err
		}
		hc, err := rest.HTTPClientFor(b.config)
		if err != nil {
			return nil, err
		}
		var v []float64
		for range b.runs {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.config.Host+"/api/v1/namespaces/"+namespace+"/configmaps", nil)
			if err != nil {
				return nil, err
			}
			r.Header.Set("Accept", accept)
			r.Header.Set("Accept-Encoding", "identity")
			begin := time.Now()
			resp, err := hc.Do(r)
			if err != nil {
				return nil, err
			}
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil {
				return nil, err
			}
			if resp.StatusCode != http.StatusOK || n < configMaps*50 {
				return nil, fmt.Errorf("%s, %d bytes", resp.Status, n)
			}
			v = append(v, millis(time.Since(begin)))
		}
		return v, nil
	}
}

func watchers(ctx context.Context, b *bench) ([]float64, error) {
	if err := b.cluster(); err != nil {
		return nil, err
	}
	c, err := b.protobuf()
	if err != nil {
		return nil, err
	}
	const watching, updates = 100, 1000
	o, err := c.CoreV1().ConfigMaps("default").Create(ctx, configMap("watched"), metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	hc, err := rest.HTTPClientFor(b.config)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	var first error
	var once sync.Once
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var ready sync.WaitGroup
	for range watching {
		ready.Add(1)
		wg.Go(func() {
			n, err := countEvents(ctx, hc, fmt.Sprintf("%s/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=%s&fieldSelector=metadata.name%%3Dwatched", b.config.Host, o.ResourceVersion), updates, ready.Done)
			if err != nil {
				once.Do(func() { first = fmt.Errorf("after %d events: %w", n, err) })
			}
		})
	}
	ready.Wait()
	begin := time.Now()
	for i := range updates {
		o.Data["key"] = fmt.Sprint(i)
		if o, err = c.CoreV1().ConfigMaps("default").Update(ctx, o, metav1.UpdateOptions{}); err != nil {
			return nil, err
		}
	}
	wg.Wait()
	return []float64{watching * updates / time.Since(begin).Seconds()}, first
}

// countEvents reads a JSON watch until it has seen n events, one a line.
func countEvents(ctx context.Context, hc *http.Client, url string, n int, ready func()) (seen int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		ready()
		return 0, err
	}
	resp, err := hc.Do(r)
	ready()
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	buf := make([]byte, 64<<10)
	for seen < n {
		m, err := resp.Body.Read(buf)
		for _, c := range buf[:m] {
			if c == '\n' {
				seen++
			}
		}
		if err != nil && seen < n {
			return seen, err
		}
	}
	return seen, nil
}

func deleteCollection(ctx context.Context, b *bench) ([]float64, error) {
	if err := b.fill(); err != nil {
		return nil, err
	}
	begin := time.Now()
	err := b.client.CoreV1().ConfigMaps(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	b.configs = false
	return []float64{seconds(time.Since(begin))}, err
}
