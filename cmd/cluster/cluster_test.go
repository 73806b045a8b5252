package cluster

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/yare-dev/yare/pki"
)

func host(t *testing.T) Host {
	d := t.TempDir()
	return Host{VarDir: filepath.Join(d, "var"), RunDir: filepath.Join(d, "run"), UsualKubelet: filepath.Join(d, "kubelet")}
}

func claim(t *testing.T, h Host, w Wish) *Record {
	t.Helper()
	r, created, err := h.Claim(w)
	if err != nil || !created {
		t.Fatal(created, err)
	}
	return r
}

func TestClaimKeepsClustersApart(t *testing.T) {
	h := host(t)
	a, b := claim(t, h, Wish{Name: "a"}), claim(t, h, Wish{Name: "b"})
	if a.PodCIDR.Overlaps(b.PodCIDR) || a.ServiceNet.Overlaps(b.ServiceNet) || a.PodCIDR.Overlaps(a.ServiceNet) {
		t.Errorf("ranges overlap: %+v %+v", a, b)
	}
	if a.APIPort == b.APIPort || a.KubeletPort == b.KubeletPort || a.DataDir == b.DataDir {
		t.Errorf("shared: %+v %+v", a, b)
	}
	if a.Index == 0 && a.NodePorts != [2]int{30000, 32767} || b.NodePorts[0] <= a.NodePorts[1] {
		t.Errorf("node ports %v %v", a.NodePorts, b.NodePorts)
	}
	again, created, err := h.Claim(Wish{Name: "a", UsualKubeconfig: "/elsewhere", Ephemeral: new(false)})
	if err != nil || created || !reflect.DeepEqual(again, a) {
		t.Errorf("the second claim made another: %v %v %v", again, created, err)
	}
	if !a.PodCIDR.Contains(a.NodeRanges()[0].Addr()) || a.DNSAddress().String() != nth(a.ServiceNet, 10).String() {
		t.Errorf("%v %v", a.NodeRanges(), a.DNSAddress())
	}
}

func TestClaimRefuses(t *testing.T) {
	h := host(t)
	a := claim(t, h, Wish{Name: "a"})
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		wish Wish
		want string
	}{
		{Wish{Name: "Upper"}, "lower-case"},
		{Wish{Name: ""}, "lower-case"},
		{Wish{Name: strings.Repeat("a", 21)}, "1 to 20"},
		{Wish{Name: "../x"}, "lower-case"},
		{Wish{Name: "b", DataDir: a.DataDir}, `used by cluster "a"`},
		{Wish{Name: "b", DataDir: filepath.Join(a.DataDir, "below")}, `used by cluster "a"`},
		{Wish{Name: "b", DataDir: filepath.Dir(a.DataDir)}, `used by cluster "a"`},
		{Wish{Name: "b", DataDir: full}, "not empty"},
		{Wish{Name: "b", DataDir: filepath.Join(full, "mine", "x")}, "mine"},
		{Wish{Name: "b", APIPort: taken.Addr().(*net.TCPAddr).Port}, "in use"},
		{Wish{Name: "b", APIPort: a.APIPort}, `belongs to cluster "a"`},
		{Wish{Name: "a", DataDir: "/elsewhere"}, "leave out --data-dir"},
		{Wish{Name: "a", Ephemeral: new(true)}, "durable"},
		{Wish{Name: "a", Kubeconfig: "/elsewhere"}, "leave out --kubeconfig"},
		{Wish{Name: "a", APIPort: a.APIPort + 1}, "leave out --api-port"},
	} {
		if _, created, err := h.Claim(tt.wish); err == nil || !strings.Contains(err.Error(), tt.want) || created {
			t.Errorf("%+v: %v", tt.wish, err)
		}
	}
	if rs, err := h.List(); err != nil || len(rs) != 1 {
		t.Errorf("a refused claim left a record: %v %v", rs, err)
	}
}

func TestLock(t *testing.T) {
	h := host(t)
	r := claim(t, h, Wish{Name: "a"})
	if _, running := r.Server(); running {
		t.Error("running before it was started")
	}
	unlock, err := h.Lock(r)
	if err != nil {
		t.Fatal(err)
	}
	if pid, running := r.Server(); !running || pid != os.Getpid() {
		t.Error(pid, running)
	}
	if _, err := h.Lock(r); err == nil || !strings.Contains(err.Error(), "already served by process") {
		t.Error(err)
	}
	unlock()
	if _, running := r.Server(); running {
		t.Error("running after the end")
	}
}

// A server that starts while its cluster is removed must not bring it back, nor one that was removed take away its successor.
func TestRemovedMeanwhile(t *testing.T) {
	h := host(t)
	first := claim(t, h, Wish{Name: "a"})
	if err := h.forget(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Lock(first); !errors.Is(err, ErrUnknown) {
		t.Errorf("served a cluster that was removed: %v", err)
	}
	second := claim(t, h, Wish{Name: "a"})
	if _, err := h.Lock(first); err == nil || !strings.Contains(err.Error(), "made again") {
		t.Errorf("served the successor by the old record: %v", err)
	}
	told := func(step string) { t.Errorf("the successor was touched: %s", step) }
	if err := h.Remove(t.Context(), first, false, told); err != nil {
		t.Error(err)
	}
	if r, err := h.Find("a"); err != nil || !reflect.DeepEqual(r, second) {
		t.Errorf("the successor is gone: %v %v", r, err)
	}
}

// Of two starts of one cluster the second waits; a start whose cluster is removed makes it anew.
func TestStartingWaits(t *testing.T) {
	h := host(t)
	first, created, done, err := h.Starting(t.Context(), Wish{Name: "a"})
	if err != nil || !created {
		t.Fatal(created, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, _, err := h.Starting(ctx, Wish{Name: "a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("did not wait for the first start: %v", err)
	}
	if _, _, other, err := h.Starting(ctx, Wish{Name: "b"}); err != nil {
		t.Errorf("waited for the start of another cluster: %v", err)
	} else {
		other()
	}
	next := make(chan *Record)
	go func() {
		r, created, done, err := h.Starting(t.Context(), Wish{Name: "a"})
		if err != nil || !created {
			t.Errorf("after the removal: %v %v", created, err)
			close(next)
			return
		}
		done()
		next <- r
	}()
	if err := h.forget(t.Context(), first); err != nil {
		t.Error(err)
	}
	done()
	if r := <-next; r == nil || r.ID == first.ID {
		t.Errorf("not a new cluster: %+v", r)
	}
}

// Remove takes away what the cluster made, and nothing of what was there before.
func TestRemoveFiles(t *testing.T) {
	for _, tt := range []struct {
		name    string
		existed bool
	}{{"made", false}, {"existed", true}} {
		t.Run(tt.name, func(t *testing.T) {
			h := host(t)
			parent := t.TempDir()
			data := filepath.Join(parent, "x", "y")
			if tt.existed {
				if err := os.MkdirAll(data, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			r := claim(t, h, Wish{Name: "a", DataDir: data, Kubeconfig: filepath.Join(parent, "kubeconfig")})
			if err := os.MkdirAll(filepath.Join(data, "etcd"), 0o700); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := removeData(t.Context(), r); err != nil {
					t.Fatal(err)
				}
				if err := h.forget(t.Context(), r); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := os.Stat(filepath.Join(parent, "x")); (err == nil) != tt.existed {
				t.Errorf("parent: %v", err)
			}
			if _, err := os.Stat(filepath.Join(data, "etcd")); err == nil {
				t.Error("data was left")
			}
			if _, err := h.Find("a"); !errors.Is(err, ErrUnknown) {
				t.Error(err)
			}
			if entries, err := os.ReadDir(filepath.Dir(h.VarDir)); err != nil || len(entries) != 0 {
				t.Errorf("left: %v %v", entries, err)
			}
		})
	}
}

// The kubeconfig goes when it was made for clusters and the last of them goes, and stays when somebody else's entries are in it.
func TestRemoveContext(t *testing.T) {
	write := func(path, name string) {
		t.Helper()
		c := clientcmdapi.NewConfig()
		c.Clusters[name], c.AuthInfos[name], c.Contexts[name] = clientcmdapi.NewCluster(), clientcmdapi.NewAuthInfo(), clientcmdapi.NewContext()
		if err := pki.MergeKubeconfig(t.Context(), path, c); err != nil {
			t.Fatal(err)
		}
	}
	for _, foreign := range []bool{false, true} {
		h := host(t)
		home := t.TempDir()
		file := filepath.Join(home, ".kube", "config")
		a := claim(t, h, Wish{Name: "a", Kubeconfig: file})
		write(file, a.Context())
		b := claim(t, h, Wish{Name: "b", Kubeconfig: file})
		write(file, b.Context())
		if foreign {
			write(file, "mine")
		}
		for _, r := range []*Record{a, b} {
			if err := removeContext(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		entries, err := os.ReadDir(home)
		if err != nil || (len(entries) > 0) != foreign {
			t.Errorf("foreign entries %v: left %v, %v", foreign, entries, err)
		}
	}
}

// The context that was current before a cluster is so again after it, over the clusters in between that are gone by then. What somebody
// has made current meanwhile stays, and what is no longer there does not come back.
func TestRemoveRestoresContext(t *testing.T) {
	edit := func(path string, change func(*clientcmdapi.Config)) {
		t.Helper()
		c, err := clientcmd.LoadFromFile(path)
		if err != nil {
			c = clientcmdapi.NewConfig()
		}
		change(c)
		if err := clientcmd.WriteToFile(*c, path); err != nil {
			t.Fatal(err)
		}
	}
	use := func(name string) func(*clientcmdapi.Config) {
		return func(c *clientcmdapi.Config) { c.Contexts[name], c.CurrentContext = clientcmdapi.NewContext(), name }
	}
	for _, tt := range []struct{ steps, want string }{
		{"use mine, up a, down a", "mine"},
		{"up a, down a", ""},
		{"use mine, up a, up b, down b", "yare-a"},
		{"use mine, up a, up b, down a, down b", "mine"},
		{"use mine, up a, up b, down b, down a", "mine"},
		{"use mine, up a, up b, up c, down b, down c", "yare-a"},
		{"use mine, up a, up b, up c, up d, down c, down b, down d", "yare-a"},
		{"up a, up b, up c, down b, down c", "yare-a"},
		{"up a, up b, up c, down a, down c", "yare-b"},
		{"up a, up b, up c, down a, down b, down c", ""},
		{"up a, up b, up c, up d, down c, down a, down d", "yare-b"},
		{"up a, up b, use yare-a, up c, down a, down c", "yare-b"},
		{"use mine, up a, up b, up c, up d, down a, down c, down b, down d", "mine"},
		{"use mine, up a, use other, down a", "other"},
		{"use mine, up a, drop mine, down a", ""},
	} {
		h := host(t)
		file := filepath.Join(t.TempDir(), "config")
		edit(file, func(*clientcmdapi.Config) {})
		rs := map[string]*Record{}
		for s := range strings.SplitSeq(tt.steps, ", ") {
			verb, name, _ := strings.Cut(s, " ")
			switch verb {
			case "use":
				edit(file, use(name))
			case "drop":
				edit(file, func(c *clientcmdapi.Config) { delete(c.Contexts, name) })
			case "up":
				rs[name] = claim(t, h, Wish{Name: name, Kubeconfig: file})
				edit(file, use(rs[name].Context()))
			case "down":
				if err := errors.Join(removeContext(t.Context(), rs[name]), h.forget(t.Context(), rs[name])); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, err := currentContext(file); err != nil || got != tt.want {
			t.Errorf("%s: %q, %v", tt.steps, got, err)
		}
	}
}

// A foreign mount below the data is never emptied.
func TestRemoveStopsAtMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	foreign := filepath.Join(dir, "volume")
	if err := os.Mkdir(foreign, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", foreign, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(foreign, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Error(err)
	}
	if err := removeTree(dir); err == nil || !strings.Contains(err.Error(), foreign) {
		t.Error(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	if err := unmountBelow(dir); err != nil {
		t.Fatal(err)
	}
	if ps, err := mountsBelow(dir); err != nil || len(ps) != 0 {
		t.Errorf("left mounted: %v %v", ps, err)
	}
}
