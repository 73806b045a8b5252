package criserver

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cni/plugins"
	"github.com/yare-dev/yare/linux/netns"
)

// took collects how many milliseconds calls took, by name.
type took map[string][]float64

func (t took) note(name string, begin time.Time) {
	t[name] = append(t[name], float64(time.Since(begin).Microseconds())/1000)
}

// report tells the medians, and make bench (test/bench/cri.go) all of them.
func (t took) report(b *testing.B) {
	for name, all := range t {
		b.Logf("took %s: %v", name, all)
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], "ms/"+name)
	}
}

// builtInNetwork gives the harness's server the built-in network, with its pool, in a network namespace that is its host's.
func (h *harness) builtInNetwork() {
	h.Helper()
	host := filepath.Join(h.dir, "host")
	if err := netns.New(host, nil); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		if err := netns.Delete(host); err != nil {
			h.Error(err)
		}
	})
	n, err := plugins.New(plugins.Config{Name: "bench", Dir: filepath.Join(h.dir, "network"), MTU: 1500, Pool: benchPool,
		Ranges: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")}}, slog.New(slog.DiscardHandler))
	if err != nil {
		h.Fatal(err)
	}
	h.stop()
	h.deps.Network = n
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- netns.Do(host, func() error { return n.Run(ctx, func() { close(ready) }) }) }()
	<-ready
	h.start()
	h.Cleanup(func() {
		h.removeAll()
		cancel()
		if err := <-done; err != nil {
			h.Error(err)
		}
		if err := n.Remove(context.Background()); err != nil {
			h.Error(err)
		}
	})
}

// benchPool is the number of namespaces that the network keeps ready.
const benchPool = 8

// warm waits until the pool is full: what is made meanwhile for the next pods is not what this one takes.
func (h *harness) warm() {
	h.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		all, err := netns.List(filepath.Join(h.dir, "network", "netns"))
		if err != nil {
			h.Fatal(err)
		}
		if len(all) == benchPool {
			return
		}
		if time.Now().After(deadline) {
			h.Fatalf("the pool has %d namespaces, not %d", len(all), benchPool)
		}
	}
}

// BenchmarkPod measures what the kubelet waits for, by call, with a warm pool.
func BenchmarkPod(b *testing.B) {
	h := newHarness(b)
	h.builtInNetwork()
	t := took{}
	for i := 0; b.Loop(); i++ {
		config := h.podConfig("p")
		h.pods = []string{"p"}
		config.Metadata.Attempt = uint32(i)
		h.warm()
		begin := time.Now()
		r, err := h.Runtime.RunPodSandbox(b.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			b.Fatal(err)
		}
		t.note("sandbox", begin)
		begin = time.Now()
		id := h.create(r.PodSandboxId, h.containerConfig("c", "sleep", "1000"))
		t.note("create", begin)
		begin = time.Now()
		h.startContainer(id)
		t.note("start", begin)
		begin = time.Now()
		if _, err := h.Runtime.RemovePodSandbox(b.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
			b.Fatal(err)
		}
		t.note("remove", begin)
	}
	t.report(b)
}

func BenchmarkExecSync(b *testing.B) {
	h := newHarness(b)
	id := h.run(h.runPod("p"), "c", "sleep", "1000")
	t := took{}
	for b.Loop() {
		begin := time.Now()
		h.exec(id, "true")
		t.note("exec", begin)
	}
	t.report(b)
}
