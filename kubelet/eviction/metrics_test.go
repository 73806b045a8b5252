package eviction

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetrics(t *testing.T) {
	m := NewMetrics()
	m.Evicted("memory.available")
	m.Evicted("emptydirfs.limit")
	m.age(MemoryAvailable, time.Second)
	r := prometheus.NewRegistry()
	r.MustRegister(m.Collectors()...)
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range all {
		for _, one := range f.Metric {
			got = append(got, f.GetName()+"{"+one.Label[0].GetName()+"="+one.Label[0].GetValue()+"}")
		}
	}
	want := "kubelet_eviction_stats_age_seconds{eviction_signal=memory.available} kubelet_evictions{eviction_signal=emptydirfs.limit} kubelet_evictions{eviction_signal=memory.available}"
	if strings.Join(got, " ") != want {
		t.Error(got)
	}
	(*Metrics)(nil).Evicted("x")
	(*Metrics)(nil).age(MemoryAvailable, time.Second)
}
