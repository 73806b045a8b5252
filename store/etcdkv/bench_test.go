package etcdkv_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/etcdkv"
)

func configMap(name string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{Data: map[string]string{"key": "a value of some forty bytes, like many are"}}
	cm.Namespace, cm.Name, cm.UID = "default", name, "d3b07384-d9a0-4c9b-8f0e-0c5b1a2f3e4d"
	return cm
}

// A durable create, until it is published: p50 of one writer, and the rate of many.
func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			s := runStore(b, etcdkv.New(run(b, etcd.Config{})))
			took := make([]time.Duration, b.N)
			var wg sync.WaitGroup
			b.ResetTimer()
			for w := range writers {
				wg.Go(func() {
					for i := w; i < b.N; i += writers {
						start := time.Now()
						if _, err := s.Create(b.Context(), api.ConfigMapKind, configMap(fmt.Sprint("cm-", i)), 0); err != nil {
							b.Error(err)
							return
						}
						took[i] = time.Since(start)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
			b.ReportMetric(float64(took[b.N/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[b.N*99/100].Microseconds()), "p99-µs")
		})
	}
}

// Puts on the database alone.
func BenchmarkPut(b *testing.B) {
	for _, writers := range []int{1, 32} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			kv := etcdkv.New(run(b, etcd.Config{}))
			value := make([]byte, 300)
			var wg sync.WaitGroup
			b.ResetTimer()
			for w := range writers {
				wg.Go(func() {
					for i := w; i < b.N; i += writers {
						if _, err := kv.Put(b.Context(), fmt.Sprint("/k/", i), value, 0, 0); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

// A thousand updates to a hundred watchers, without HTTP.
func BenchmarkFanOut(b *testing.B) {
	const watchers, updates = 100, 1000
	s := runStore(b, etcdkv.New(run(b, etcd.Config{Ephemeral: true})))
	e, err := s.Create(b.Context(), api.ConfigMapKind, configMap("a"), 0)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var wg sync.WaitGroup
		for range watchers {
			w, err := s.Watch(api.ConfigMapKind, s.Revision(), 0)
			if err != nil {
				b.Fatal(err)
			}
			wg.Go(func() { count(b, w, updates) })
		}
		for i := range updates {
			cm := configMap("a")
			cm.Data["n"] = fmt.Sprint(i)
			if e, err = s.Update(b.Context(), api.ConfigMapKind, cm, e.Revision, 0); err != nil {
				b.Fatal(err)
			}
		}
		wg.Wait()
	}
	b.ReportMetric(float64(b.N)*watchers*updates/b.Elapsed().Seconds(), "events/s")
}

func count(b *testing.B, w *store.Watch, want int) {
	for n := 0; n < want; {
		evs, _, err := w.Next(context.WithoutCancel(b.Context()))
		if err != nil {
			b.Error(err)
			return
		}
		n += len(evs)
	}
}

// Listing and encoding 20,000 objects, the first time and again.
func BenchmarkList(b *testing.B) {
	s := runStore(b, etcdkv.New(run(b, etcd.Config{Ephemeral: true})))
	const objects = 20000
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < objects; i += 32 {
				if _, err := s.Create(b.Context(), api.ConfigMapKind, configMap(fmt.Sprint("cm-", i)), 0); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.Run("snapshot", func(b *testing.B) {
		for b.Loop() {
			n := 0
			for range s.Snapshot(api.ConfigMapKind).All("", api.Key{}) {
				n++
			}
			if n != objects {
				b.Fatal(n)
			}
		}
	})
	for name, f := range map[string]store.Format{"json": store.JSON, "protobuf": store.Protobuf} {
		b.Run(name, func(b *testing.B) {
			size := 0
			for b.Loop() {
				size = 0
				for e := range s.Snapshot(api.ConfigMapKind).All("", api.Key{}) {
					data, err := e.Bytes(f)
					if err != nil {
						b.Fatal(err)
					}
					size += len(data)
				}
			}
			b.SetBytes(int64(size))
		})
	}
}
