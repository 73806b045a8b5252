package plugins

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/netns"
)

// TestMain is the plugin when a CNI runtime executes this program.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		if Main(context.Background(), os.Stdout) != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// folders makes the folders of an Exec network with our own program as the plugin.
func folders(t testing.TB, w *world, list string) cni.ExecConfig {
	t.Helper()
	dir := t.TempDir()
	c := cni.ExecConfig{ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")},
		CacheDir: filepath.Join(dir, "cache"), NetNSDir: filepath.Join(dir, "netns")}
	for _, d := range []string{c.ConfDir, c.BinDirs[0]} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(c.BinDirs[0], "yare")); err != nil {
		t.Fatal(err)
	}
	if list != "" {
		configure(t, c, list)
	}
	return c
}

func configure(t testing.TB, c cni.ExecConfig, list string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.ConfDir, "10-yare.conflist"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (w *world) list() string {
	return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "t", "plugins": [{"type": "yare", "stateDir": %q,
		"subnets": ["10.42.0.0/24"], "capabilities": {"portMappings": true, "ips": true, "bandwidth": true}}]}`, w.state)
}

// TestExec drives the plugin through the exec protocol.
func TestExec(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := cni.NewExec(folders(t, w, w.list()))
	ctx := t.Context()
	w.in(t, w.host, func() error {
		if err := e.Status(ctx); err != nil {
			t.Error(err)
		}
		var pods []cni.Pod
		for i, id := range []string{"a", "b"} {
			ns, err := e.NewNamespace(ctx)
			if err != nil {
				return err
			}
			p := cni.Pod{ID: id, NetNS: ns, Namespace: "d", Name: id, PortMappings: []cni.PortMapping{{HostPort: uint16(8080 + i), ContainerPort: 80}}}
			if id == "b" {
				p.IPs = []netip.Addr{netip.MustParseAddr("10.42.0.77")}
				p.Bandwidth = &cni.Bandwidth{IngressRate: 8 << 20, EgressRate: 8 << 20}
			}
			res, err := e.Setup(ctx, p)
			if err != nil {
				return err
			}
			if want := []string{"10.42.0.1/32", "10.42.0.77/32"}[i]; res.IPs[0].Address.String() != want || res.Interfaces[1].Name != "eth0" {
				t.Errorf("%s: result %+v", id, res)
			}
			pods = append(pods, p)
		}
		w.serve(t, pods[0].NetNS, "tcp", ":80")
		if got := w.ask(t, pods[1].NetNS, "tcp", "10.42.0.1:80"); got != "10.42.0.77" {
			t.Errorf("pod to pod: %s", got)
		}
		if got := w.ask(t, w.outside, "tcp", "192.0.2.2:8080"); got != "192.0.2.1" {
			t.Errorf("host port: %s", got)
		}
		if err := e.Check(ctx, pods[1]); err != nil {
			t.Error(err)
		}
		// b's namespace is lost, as by a reboot of the runtime; then b is torn down twice.
		if err := netns.Delete(pods[1].NetNS); err != nil {
			return err
		}
		for range 2 {
			if err := e.Teardown(ctx, pods[1]); err != nil {
				t.Error(err)
			}
		}
		// Nobody knows a any more.
		if err := e.Prune(ctx, nil); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(pods[0].NetNS); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("namespace left: %v", err)
		}
		return nil
	})
	n := w.network(t, nil)
	if records, err := n.records(); len(records) != 0 || err != nil {
		t.Errorf("records left: %v, %v", records, err)
	}
	w.empty(t, n)
}

// TestExecErrors checks what is said when something is wrong.
func TestExecErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, test := range map[string]struct{ list, want string }{
		"none":     {"", "no configuration list in"},
		"garbage":  {"{", "load "},
		"missing":  {`{"cniVersion": "1.0.0", "name": "t", "plugins": [{"type": "absent"}]}`, `failed to find plugin "absent"`},
		"no range": {`{"cniVersion": "1.1.0", "name": "t", "plugins": [{"type": "yare", "stateDir": "/nowhere"}]}`, "ranges: none is given"},
	} {
		t.Run(name, func(t *testing.T) {
			e := cni.NewExec(folders(t, w, test.list))
			w.in(t, w.host, func() error {
				for what, err := range map[string]error{"status": e.Status(t.Context()), "setup": func() error {
					_, err := e.Setup(t.Context(), cni.Pod{ID: "x", NetNS: w.host})
					return err
				}()} {
					if err == nil || !strings.Contains(err.Error(), test.want) {
						t.Errorf("%s: %v, want %q", what, err, test.want)
					}
				}
				return nil
			})
		})
	}
}

// TestSelect lets a configuration appear and go: new pods follow it, old ones stay where
// they are.
func TestSelect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := folders(t, w, "")
	builtin := w.network(t, func(c *Config) { c.Name, c.Dir = "b", w.state+"-b" })
	var log strings.Builder
	s := cni.NewSelect(cni.NewExec(c), builtin, slog.New(slog.NewTextHandler(&log, nil)))
	ctx := t.Context()
	w.in(t, w.host, func() error {
		var pods []cni.Pod
		for i, id := range []string{"one", "two"} {
			switch i {
			case 0: // as podman's, whose plugins are in another folder
				configure(t, c, `{"cniVersion": "1.0.0", "name": "podman", "plugins": [{"type": "absent"}]}`)
				if err := s.Status(ctx); err != nil {
					t.Error("a list without its plugins takes over:", err)
				}
			case 1:
				configure(t, c, strings.ReplaceAll(w.list(), "10.42.0.0", "10.42.1.0"))
			}
			ns, err := s.NewNamespace(ctx)
			if err != nil {
				return err
			}
			p := cni.Pod{ID: id, NetNS: ns}
			res, err := s.Setup(ctx, p)
			if err != nil {
				return err
			}
			if got, want := res.Addrs()[0].String(), []string{"10.42.0.1", "10.42.1.1"}[i]; got != want {
				t.Errorf("%s has %s, want %s", id, got, want)
			}
			pods = append(pods, p)
		}
		w.serve(t, pods[0].NetNS, "tcp", ":80")
		if got := w.ask(t, pods[1].NetNS, "tcp", "10.42.0.1:80"); got == "" || strings.Contains(got, "dial") {
			t.Errorf("between the networks: %s", got)
		}
		if err := s.Prune(ctx, pods); err != nil {
			t.Error(err)
		}
		for _, p := range pods {
			if err := errors.Join(s.Check(ctx, p), s.Teardown(ctx, p), s.DeleteNamespace(ctx, p.NetNS)); err != nil {
				t.Error(err)
			}
		}
		return builtin.Remove(ctx)
	})
	if n := strings.Count(log.String(), "passed over"); n != 1 || !strings.Contains(log.String(), "absent") {
		t.Errorf("told %d times of the list without its plugins: %s", n, log.String())
	}
	w.empty(t, w.network(t, nil))
}
