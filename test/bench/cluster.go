package main

import (
	"context"
	"encoding/json"
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
	name    string   // of the cluster, no other bench's
	dir     string   // of all files
	lock    *os.File // dir, locked as long as this bench lives
	calm    bool     // the cluster has rested, and has had nothing to do
	client  kubernetes.Interface
	config  *rest.Config
	own     *target // the cluster's API server
	peer    *target // upstream's, beside it
	endPeer func()
	pods    []string
	oci     map[string][]float64 // run and delete by runtime
	cri     map[string][]float64 // CRI calls by name
	pulls   []pulls              // of an image, and gunzip of its layers
}

const dirPrefix = "yare-bench-"

// clusterNames are those of the cluster that the rows share, and of those that are made for one row, of the bench with a folder.
func clusterNames(dir string) (shared, cold string) {
	id := strings.TrimPrefix(filepath.Base(dir), dirPrefix)
	return "bench-" + id, "benchcold-" + id
}

// open makes the bench's folder, after removing what benches that were killed left.
func (b *bench) open() (err error) {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range old {
		if !isOurs(dir) {
			continue // somebody else's, or it has just gone, or come and is not locked yet
		}
		lock, err := hold(dir)
		if err != nil {
			continue // it lives
		}
		shared, cold := clusterNames(dir)
		dead := bench{yare: b.yare, dir: dir}
		if err := errors.Join(dead.down(shared), dead.down(cold), os.RemoveAll(dir), lock.Close()); err != nil {
			return fmt.Errorf("remove what a bench that was killed left: %w", err)
		}
	}
	if b.dir, err = os.MkdirTemp("", dirPrefix); err != nil {
		return err
	}
	b.name, _ = clusterNames(b.dir)
	if b.lock, err = hold(b.dir); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, mark), nil, 0o600)
}

// mark is a file in each bench's folder, from when it is locked: folders without it are not removed, whatever they are called.
const mark = ".yare-bench"

// isOurs says that a bench of this user has made the folder. Anybody can make one of such a name where all have their temporary files.
func isOurs(dir string) bool {
	var folder, file syscall.Stat_t
	if syscall.Lstat(dir, &folder) != nil || syscall.Lstat(filepath.Join(dir, mark), &file) != nil {
		return false
	}
	return folder.Mode&syscall.S_IFMT == syscall.S_IFDIR && file.Mode&syscall.S_IFMT == syscall.S_IFREG &&
		int(folder.Uid) == os.Geteuid() && int(file.Uid) == os.Geteuid()
}

// hold locks a bench's folder, if no living bench holds it.
func hold(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (b *bench) kubeconfig() string { return filepath.Join(b.dir, "kubeconfig") }

func (b *bench) command(args ...string) error {
	out, err := exec.Command(b.yare, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("yare %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (b *bench) up() error {
	return b.command("up", "--name", b.name, "--data-dir", filepath.Join(b.dir, "data"), "--kubeconfig", b.kubeconfig())
}

// down ends a cluster, if there is one of that name that has its data in the bench's folder.
func (b *bench) down(name string) error {
	text, err := os.ReadFile("/var/lib/yare/clusters/" + name + ".json")
	if err != nil {
		return nil
	}
	var record struct {
		DataDir string `json:"dataDir"`
	}
	if err := json.Unmarshal(text, &record); err != nil {
		return fmt.Errorf("cluster %s: %w", name, err)
	}
	if !strings.HasPrefix(record.DataDir, b.dir+"/") {
		return nil // somebody else's
	}
	return b.command("down", "--name", name)
}

// cluster makes the shared cluster with the image hello:1 in it.
func (b *bench) cluster() error {
	if b.client != nil {
		return nil
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
	if err := b.command("image", "build-from", root, "--name", b.name, "--tag", "hello:1", "--entrypoint", "/hello"); err != nil {
		return err
	}
	var err error
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
	if err := b.down(b.name); err != nil {
		fmt.Fprintln(os.Stderr, err)
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
	_, name := clusterNames(b.dir)
	dir := filepath.Join(b.dir, "cold")
	var v []float64
	for range b.runs {
		begin := time.Now()
		err := b.command("up", "--name", name, "--data-dir", filepath.Join(dir, "data"), "--kubeconfig", filepath.Join(dir, "kubeconfig"))
		v = append(v, seconds(time.Since(begin)))
		err = errors.Join(err, b.down(name), os.RemoveAll(dir), ctx.Err())
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
	text, err := os.ReadFile("/run/yare/" + b.name + "/server.lock")
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
		if pid != server && strings.Contains(string(cgroup), "/yare/"+b.name+"/") && strings.HasPrefix(string(comm), "yare") {
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
		b.calm = true
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
	if !b.calm {
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
