package apiserver_test

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientrest "k8s.io/client-go/rest"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/fairness"
	"github.com/yare-dev/yare/client"
)

// The rows of the performance goals that this package can show, client and server on the same machine, over the
// memory store: what is measured is the pipeline and HTTP. Run with -bench . -cpu 2.

const workers = 16

func clientset(b testing.TB, s *apiserver.Server, media string) (*kubernetes.Clientset, *clientrest.Config) {
	cfg := overTLS(b, s)
	cfg.ContentType, cfg.AcceptContentTypes = media, media
	cs, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		b.Fatal(err)
	}
	return cs, cfg
}

func configMap(i int) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("cm-%06d", i), Namespace: "default", Labels: map[string]string{"app": "bench"}},
		Data:       map[string]string{"key": "a value of some thirty characters"},
	}
}

// spread runs f for 0..n-1 by the workers.
func spread(n int, f func(i int)) {
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				f(i)
			}
		})
	}
	wg.Wait()
}

func BenchmarkCreate(b *testing.B) {
	for _, media := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		b.Run(media, func(b *testing.B) {
			cs, _ := clientset(b, serve(b, quiet), media)
			b.ResetTimer()
			spread(b.N, func(i int) {
				if _, err := cs.CoreV1().ConfigMaps("default").Create(b.Context(), configMap(i), metav1.CreateOptions{}); err != nil {
					b.Error(err)
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
		})
	}
}

// BenchmarkGet is without and with fairness, which may cost next to nothing where nobody has to wait.
func BenchmarkGet(b *testing.B) {
	for name, fair := range map[string]func(*apiserver.Config, *apiserver.Deps){
		"plain": func(*apiserver.Config, *apiserver.Deps) {},
		"fair": func(_ *apiserver.Config, d *apiserver.Deps) {
			d.Authenticators = []authn.Authenticator{somebody{}}
			d.Fairness = fairness.New(d.Store, 600)
		},
	} {
		b.Run(name, func(b *testing.B) {
			cs, _ := clientset(b, serve(b, quiet, fair), runtime.ContentTypeProtobuf)
			if _, err := cs.CoreV1().ConfigMaps("default").Create(b.Context(), configMap(0), metav1.CreateOptions{}); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			spread(b.N, func(int) {
				if _, err := cs.CoreV1().ConfigMaps("default").Get(b.Context(), "cm-000000", metav1.GetOptions{}); err != nil {
					b.Error(err)
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "gets/s")
		})
	}
}

// somebody is a user to whom limits apply.
type somebody struct{}

func (somebody) Authenticate(*http.Request) (*authn.User, error) {
	return &authn.User{Name: "somebody", Groups: []string{authn.Authenticated}}, nil
}

// quiet grants everything without logging.
func quiet(_ *apiserver.Config, d *apiserver.Deps) {
	d.Authenticators = []authn.Authenticator{master{}}
}

type master struct{}

func (master) Authenticate(*http.Request) (*authn.User, error) {
	return &authn.User{Name: "admin", Groups: []string{authn.Masters, authn.Authenticated}}, nil
}

// fill stores n ConfigMaps through the in-process client.
func fill(b testing.TB, s *apiserver.Server, n int) {
	c := s.ClientAs(&authn.User{Name: "admin", Groups: []string{authn.Masters}})
	spread(n, func(i int) {
		if _, err := client.Create(b.Context(), c, configMap(i)); err != nil {
			b.Error(err)
		}
	})
}

func BenchmarkLocalCreate(b *testing.B) {
	s := serve(b, quiet)
	b.ResetTimer()
	fill(b, s, b.N)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
}

func BenchmarkList20000(b *testing.B) {
	s := serve(b, quiet)
	fill(b, s, 20000)
	for _, media := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		b.Run(media, func(b *testing.B) {
			cfg := overTLS(b, s)
			tr, err := clientrest.TransportFor(cfg)
			if err != nil {
				b.Fatal(err)
			}
			var size int64
			for b.Loop() {
				r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, cfg.Host+"/api/v1/configmaps", nil)
				if err != nil {
					b.Fatal(err)
				}
				r.Header.Set("Accept", media)
				resp, err := tr.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				if size, err = io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}

// BenchmarkWatchers updates one object a thousand times while 100 clients watch, and waits until all have seen all.
func BenchmarkWatchers(b *testing.B) {
	const watchers, updates = 100, 1000
	for _, media := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		b.Run(media, func(b *testing.B) {
			for b.Loop() {
				s := serve(b, quiet)
				cs, _ := clientset(b, s, media)
				fill(b, s, 1)
				var wg sync.WaitGroup
				for range watchers {
					w, err := cs.CoreV1().ConfigMaps("default").Watch(b.Context(), metav1.ListOptions{})
					if err != nil {
						b.Fatal(err)
					}
					wg.Go(func() {
						defer w.Stop()
						for range updates + 1 {
							if _, ok := <-w.ResultChan(); !ok {
								b.Error("watch ended early")
								return
							}
						}
					})
				}
				begin := time.Now()
				touch(b, s, updates)
				wg.Wait()
				b.ReportMetric(watchers*updates/time.Since(begin).Seconds(), "events/s")
			}
		})
	}
}

func touch(b *testing.B, s *apiserver.Server, n int) {
	c := s.ClientAs(&authn.User{Name: "admin", Groups: []string{authn.Masters}})
	cm, err := client.Get[*corev1.ConfigMap](b.Context(), c, api.Key{Namespace: "default", Name: "cm-000000"})
	for i := 0; i < n && err == nil; i++ {
		cm, err = client.Mutate(b.Context(), c, cm, "", func(o *corev1.ConfigMap) { o.Data = map[string]string{"n": fmt.Sprint(i)} })
	}
	if err != nil {
		b.Fatal(err)
	}
}
