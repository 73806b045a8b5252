// Package cluster_test runs the real program as a user does: clusters of their own, real containers, upstream's kubectl.
package cluster_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yare-dev/yare/test/cluster/hoststate"
)

// Built once by TestMain.
var bin struct{ yare, kubectl, hello string }

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "yare-test-bin-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		root, err := filepath.Abs("../..")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		bin.yare = filepath.Join(root, "bin", "yare")
		bin.kubectl, bin.hello = filepath.Join(dir, "kubectl"), filepath.Join(dir, "image", "hello")
		for _, b := range [][]string{{".", bin.kubectl, "./kubectl"}, {root, bin.hello, "./examples/hello"}} {
			c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2", "-o", b[1], b[2])
			c.Dir, c.Env = b[0], append(os.Environ(), "CGO_ENABLED=0") // hello's image has no libraries
			if out, err := c.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build %s: %v\n%s", b[2], err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// cluster is one cluster of a test, gone at its end.
type cluster struct {
	t          *testing.T
	name       string
	dir        string // scratch
	data       string
	home       string // kubectl's caches
	kubeconfig string
}

// newCluster starts a cluster, with further flags of `yare up`. Its end checks that the host is as it was before, unless other tests run meanwhile.
func newCluster(t *testing.T, name string, flags ...string) *cluster {
	t.Helper()
	return newClusterAt(t, name, filepath.Join(t.TempDir(), "data"), flags...)
}

// newClusterAt is newCluster with its data in a folder that must not exist.
func newClusterAt(t *testing.T, name, data string, flags ...string) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := &cluster{t: t, name: name, dir: dir, data: data, home: t.TempDir(), kubeconfig: filepath.Join(dir, "kubeconfig")}
	before := c.hostState()
	c.up(flags...)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.run(10*time.Second, bin.kubectl, "--kubeconfig", c.kubeconfig, "get", "pods,events", "-A", "-o", "wide")
			t.Log(out)
			log, _ := os.ReadFile(filepath.Join(data, "server.log"))
			t.Logf("server log:\n%s", tail(log, 60))
		}
		if out, err := c.run(time.Minute, bin.yare, "down", "--name", name); err != nil {
			t.Errorf("down: %v\n%s", err, out)
			return
		}
		if d := hoststate.Diff(before, c.hostState()); len(d) > 0 {
			t.Errorf("left behind or taken away by the cluster:\n%s", strings.Join(d, "\n"))
		}
	})
	return c
}

func (c *cluster) hostState() hoststate.State {
	c.t.Helper()
	s, err := hoststate.Take(c.dir, filepath.Dir(c.data))
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *cluster) up(flags ...string) string {
	c.t.Helper()
	args := append([]string{"up", "--name", c.name, "--data-dir", c.data, "--kubeconfig", c.kubeconfig}, flags...)
	out, err := c.run(time.Minute, bin.yare, args...)
	if err != nil {
		c.t.Fatalf("up: %v\n%s", err, out)
	}
	return out
}

// hello makes the image hello:1.
func (c *cluster) hello() {
	c.t.Helper()
	c.yare("image", "build-from", filepath.Dir(bin.hello), "--name", c.name, "--tag", "hello:1", "--entrypoint", "/hello")
}

func (c *cluster) yare(args ...string) string {
	c.t.Helper()
	out, err := c.run(2*time.Minute, bin.yare, args...)
	if err != nil {
		c.t.Fatalf("yare %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// kubectl runs upstream's kubectl, which must succeed.
func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.tryKubectl(args...)
	if err != nil {
		c.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *cluster) tryKubectl(args ...string) (string, error) {
	return c.run(2*time.Minute, bin.kubectl, append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
}

// apply feeds a manifest to kubectl apply.
func (c *cluster) apply(manifest string) string {
	c.t.Helper()
	out, err := c.input(manifest, "apply", "-f", "-")
	if err != nil {
		c.t.Fatalf("apply: %v\n%s", err, out)
	}
	return out
}

func (c *cluster) input(in string, args ...string) (string, error) {
	cmd := exec.Command(bin.kubectl, append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cluster) run(limit time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "HOME="+c.home)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("took longer than %v", limit)
	}
	return out.String(), err
}

func tail(b []byte, n int) []byte {
	lines := bytes.Split(b, []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}
