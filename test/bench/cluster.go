package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// bench holds the cluster that rows share; it is made when the first row asks for it.
type bench struct {
	yare    string
	given   string // kubeconfig of a cluster whose API is measured in place of one of our own
	runs    int
	dir     string
	client  kubernetes.Interface
	config  *rest.Config
	own     *target // the cluster's API server
	peer    *target // upstream's, beside it
	endPeer func()
	pods    []string
	oci     map[string][]float64 // run and delete by runtime
	cri     map[string][]float64 // CRI calls by name
	pulls   [][2]time.Duration   // of an image, and gunzip of its layers
}

const name = "bench"

func (b *bench) kubeconfig() string { return filepath.Join(b.dir, "kubeconfig") }

func (b *bench) command(args ...string) error {
	out, err := exec.Command(b.yare, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("yare %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (b *bench) up() error {
	return b.command("up", "--name", name, "--data-dir", filepath.Join(b.dir, "data"), "--kubeconfig", b.kubeconfig())
}

// cluster makes the shared cluster with the image hello:1 in it.
func (b *bench) cluster() error {
	if b.client != nil {
		return nil
	}
	var err error
	if b.dir, err = os.MkdirTemp("", "yare-bench-"); err != nil {
		return err
	}
	if err := b.up(); err != nil {
		return err
	}
	root := filepath.Join(b.dir, "root")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(root, "hello"), "./examples/hello")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build hello: %w: %s", err, out)
	}
	if err := b.command("image", "build-from", root, "--name", name, "--tag", "hello:1", "--entrypoint", "/hello"); err != nil {
		return err
	}
	if b.config, err = clientcmd.BuildConfigFromFlags("", b.kubeconfig()); err != nil {
		return err
	}
	b.config.QPS = -1
	b.client, err = kubernetes.NewForConfig(b.config)
	return err
}

func (b *bench) close() {
	if b.endPeer != nil {
		b.endPeer()
	}
	if b.client != nil {
		if err := b.command("down", "--name", name); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
}

func binarySize(_ context.Context, b *bench) ([]float64, error) {
	st, err := os.Stat(b.yare)
	if err != nil {
		return nil, err
	}
	return []float64{float64(st.Size()) / 1e6}, nil
}

// coldUp measures clusters of their own, each made from nothing.
func coldUp(ctx context.Context, b *bench) ([]float64, error) {
	var v []float64
	for range b.runs {
		dir, err := os.MkdirTemp("", "yare-bench-")
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		err = b.command("up", "--name", "bench-cold", "--data-dir", filepath.Join(dir, "data"), "--kubeconfig", filepath.Join(dir, "kubeconfig"))
		v = append(v, seconds(time.Since(begin)))
		err = errors.Join(err, b.command("down", "--name", "bench-cold"), os.RemoveAll(dir), ctx.Err())
		if err != nil {
			return nil, err
		}
	}
	return v, nil
}

// restart kills the server and measures until it is ready again.
func restart(ctx context.Context, b *bench) ([]float64, error) {
	if err := b.cluster(); err != nil {
		return nil, err
	}
	var v []float64
	for range b.runs {
		pid, err := b.server()
		if err != nil {
			return nil, err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return nil, err
		}
		for syscall.Kill(pid, 0) == nil {
			time.Sleep(time.Millisecond)
		}
		begin := time.Now()
		if err := b.up(); err != nil {
			return nil, err
		}
		v = append(v, seconds(time.Since(begin)))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return v, nil
}

func (b *bench) server() (int, error) {
	text, err := os.ReadFile("/run/yare/" + name + "/server.lock")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// processes returns the server and all shims of the cluster: everything but the containers' own processes.
func (b *bench) processes() ([]int, error) {
	server, err := b.server()
	if err != nil {
		return nil, err
	}
	pids := []int{server}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		cgroup, _ := os.ReadFile(d + "/cgroup")
		comm, _ := os.ReadFile(d + "/comm")
		if pid != server && strings.Contains(string(cgroup), "/yare/"+name+"/") && strings.HasPrefix(string(comm), "yare") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// memory returns the sum of the proportional set sizes in MB.
func memory(processes func() ([]int, error)) (float64, error) {
	pids, err := processes()
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				kb, _ := strconv.ParseFloat(f[1], 64)
				sum += kb / 1000 * 1.024
			}
		}
	}
	return sum, nil
}

// cpu returns the processor time that the processes have used.
func (b *bench) cpu() (time.Duration, error) {
	pids, err := b.processes()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		sum += time.Duration(user+system) * 10 * time.Millisecond
	}
	return sum, nil
}

// fresh replaces the shared cluster by an empty one and lets it come to rest.
func (b *bench) fresh(ctx context.Context) error {
	b.close()
	b.client, b.own, b.peer, b.endPeer, b.pods = nil, nil, nil, nil, nil
	if err := b.cluster(); err != nil {
		return err
	}
	select {
	case <-time.After(time.Minute):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func idleMemory(ctx context.Context, b *bench) ([]float64, error) {
	if err := b.fresh(ctx); err != nil {
		return nil, err
	}
	m, err := memory(b.processes)
	return []float64{m}, err
}

func idleCPU(ctx context.Context, b *bench) ([]float64, error) {
	if b.client == nil {
		if err := b.fresh(ctx); err != nil {
			return nil, err
		}
	}
	before, err := b.cpu()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	select {
	case <-time.After(time.Minute):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	after, err := b.cpu()
	return []float64{100 * (after - before).Seconds() / time.Since(begin).Seconds()}, err
}
