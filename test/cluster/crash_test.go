package cluster_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

var kills = flag.Int("kills", 3, "how often TestCrash kills the server")

// TestCrash kills the server with SIGKILL while writers write and a pod asks a Service all the time. Every write that was
// acknowledged is there afterwards, none that was deleted comes back, revisions never go back, and no container notices.
func TestCrash(t *testing.T) {
	c := newCluster(t, "crash")
	c.hello()
	c.kubectl("apply", "-f", "../../examples/hello/hello.yaml")
	c.kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
	c.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
	pods := c.kubectl("get", "pods", "-o", containersJSONPath)
	if strings.Count(pods, "containerd://")+strings.Count(pods, "yare://") != 4 {
		t.Fatalf("not four containers: %s", pods)
	}
	pids := c.containerPids()
	load := c.startLoad()

	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Timeout = -1, 5*time.Second
	client := kubernetes.NewForConfigOrDie(config)
	w := newWriters(client)
	for i := range *kills {
		w.run(t, func() {
			before := w.acknowledged.Load()
			for w.acknowledged.Load() < before+20 {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
			if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		})
		begin := time.Now()
		c.up()
		t.Logf("kill %d: %d writes acknowledged so far, up again after %d ms", i+1, w.acknowledged.Load(), time.Since(begin).Milliseconds())
		w.check(t)
		if t.Failed() {
			break
		}
	}
	if got := c.containerPids(); got != pids {
		t.Errorf("containers were restarted:\n%s\nbecame\n%s", pids, got)
	}
	if got := c.kubectl("get", "pods", "-o", containersJSONPath); got != pods {
		t.Errorf("containers:\n%s\nbecame\n%s", pods, got)
	}
	if out, err := load(); err != nil {
		t.Errorf("traffic through the Service was interrupted: %v\n%s", err, out)
	} else {
		t.Logf("traffic: %s", strings.TrimSpace(out))
	}
	c.kubectl("delete", "-f", "../../examples/hello/hello.yaml", "--timeout=60s")
}

// containersJSONPath prints every container's id and restart count.
const containersJSONPath = `jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}`

// containerPids returns the host's pids of the processes that run hello.
func (c *cluster) containerPids() string {
	c.t.Helper()
	var pids []string
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		cmd, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		cgroup, _ := os.ReadFile("/proc/" + e.Name() + "/cgroup")
		if string(cmd) == "/hello\x00" && strings.Contains(string(cgroup), "/yare/"+c.name+"/") {
			pids = append(pids, e.Name())
		}
	}
	if len(pids) != 4 {
		c.t.Errorf("%d processes of hello, want 4", len(pids))
	}
	return strings.Join(pids, " ")
}

// startLoad asks the Service from inside the pod "client", by a process that outlives the server since it is started
// through the container's own namespaces, not through exec.
func (c *cluster) startLoad() (stop func() (string, error)) {
	c.t.Helper()
	ip := c.kubectl("get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}")
	pod := c.kubectl("get", "pod", "client", "-o", "jsonpath={.status.podIP}")
	pid := ""
	for _, p := range strings.Fields(c.containerPids()) {
		b, _ := os.ReadFile("/proc/" + p + "/net/fib_trie")
		if strings.Contains(string(b), pod) {
			pid = p
		}
	}
	if pid == "" {
		c.t.Fatalf("no process with the address %s", pod)
	}
	return loadFrom(c.t, pid, "http://"+ip+"/")
}

// writers create, update and delete ConfigMaps and remember what was acknowledged.
type writers struct {
	client       kubernetes.Interface
	acknowledged atomic.Int64

	mu   sync.Mutex
	last map[string]string // name -> value that must be there; "" means deleted
	open map[string]string // name -> value of a write without an answer: either outcome is right
	rev  uint64            // the highest resourceVersion seen
}

const writerCount = 4

func newWriters(client kubernetes.Interface) *writers {
	return &writers{client: client, last: map[string]string{}, open: map[string]string{}}
}

// run lets the writers write until kill has returned and the server is gone.
func (w *writers) run(t *testing.T, kill func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for n := range writerCount {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if !w.write(ctx, fmt.Sprintf("w%d-%d", n, rand.IntN(20))) {
					return // the server is gone
				}
			}
		})
	}
	kill()
	wg.Wait()
	cancel()
}

// write does one write; false means that the outcome is unknown.
func (w *writers) write(ctx context.Context, name string) bool {
	api := w.client.CoreV1().ConfigMaps("default")
	w.mu.Lock()
	old := w.last[name]
	w.mu.Unlock()
	value := strconv.FormatInt(rand.Int64(), 36)
	if old != "" && rand.IntN(4) == 0 {
		value = ""
	}
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"value": value}}
	var got *corev1.ConfigMap
	var err error
	switch {
	case old == "":
		got, err = api.Create(ctx, cm, metav1.CreateOptions{})
	case value == "":
		err = api.Delete(ctx, name, metav1.DeleteOptions{})
	default:
		got, err = api.Update(ctx, cm, metav1.UpdateOptions{})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var status *apierrors.StatusError
	if err != nil && !errors.As(err, &status) {
		w.open[name] = value
		return false
	}
	if err != nil {
		return true // refused: nothing changed
	}
	w.last[name] = value
	if got != nil {
		w.see(got.ResourceVersion)
	}
	w.acknowledged.Add(1)
	return true
}

func (w *writers) see(rv string) {
	if n, err := strconv.ParseUint(rv, 10, 64); err == nil {
		w.rev = max(w.rev, n)
	}
}

// check compares what is stored with what was acknowledged.
func (w *writers) check(t *testing.T) {
	t.Helper()
	list, err := w.client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if rev, _ := strconv.ParseUint(list.ResourceVersion, 10, 64); rev < w.rev {
		t.Errorf("revision went back from %d to %d", w.rev, rev)
	}
	stored := map[string]string{}
	for _, cm := range list.Items {
		if strings.HasPrefix(cm.Name, "w") {
			stored[cm.Name] = cm.Data["value"]
		}
	}
	for name, want := range w.last {
		open, unknown := w.open[name]
		if got := stored[name]; got != want && !(unknown && got == open) {
			t.Errorf("%s: stored %q, acknowledged %q, without an answer %q", name, got, want, open)
		}
	}
	for name, got := range stored {
		if open, unknown := w.open[name]; w.last[name] != got && !(unknown && got == open) {
			t.Errorf("%s: %q was never written last", name, got)
		}
	}
	for name := range w.open {
		w.last[name] = stored[name] // settled
	}
	clear(w.open)
	w.see(list.ResourceVersion)
}
