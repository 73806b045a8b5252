package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
)

// asYare makes the test binary the program.
const asYare = "YARE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asYare) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "yare:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// process is a component that runs alone.
type process struct {
	testing.TB
	*exec.Cmd
	log string
}

// begin starts the program and waits until it is ready. In the end it is told to stop, and must, without an error.
func begin(t testing.TB, args ...string) *process {
	t.Helper()
	hear, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hear.Close()
	p := &process{TB: t, Cmd: exec.Command("/proc/self/exe", args...), log: filepath.Join(t.TempDir(), args[0]+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	p.Env = append(os.Environ(), asYare+"=1", notifyFD+"=3")
	p.Stdout, p.Stderr, p.ExtraFiles = log, log, []*os.File{tell}
	err = p.Start()
	tell.Close()
	log.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	lines := bufio.NewScanner(hear)
	for lines.Scan() {
		if lines.Text() == "ready" {
			return p
		}
	}
	t.Fatalf("%v ended: %s", args, p.said())
	return nil
}

func (p *process) said() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// end stops the process; a second call does nothing.
func (p *process) end() {
	p.Helper()
	if p.ProcessState != nil {
		return
	}
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		p.Error(err)
	}
	limit := time.AfterFunc(20*time.Second, func() { p.Process.Kill() })
	err := p.Wait()
	limit.Stop()
	if err != nil || p.Failed() {
		p.Errorf("%v: %v\n%s", p.Args[1:], err, p.said())
	}
}

// freePort is one that nobody listens on now.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// apiServerForTest starts `yare apiserver` and returns its folder and an administrator's client.
func apiServerForTest(t testing.TB) (dir string, c client.Client) {
	t.Helper()
	dir = t.TempDir()
	begin(t, "apiserver", "--data-dir", dir, "--secure-port", freePort(t), "--ephemeral")
	p := &peer{kubeconfig: filepath.Join(dir, "admin.kubeconfig"), log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	cfg, err := p.rest()
	if err != nil {
		t.Fatal(err)
	}
	access, err := p.dial(cfg, "test")
	if err != nil {
		t.Fatal(err)
	}
	return dir, access
}

// eventually waits for an object of a kind for which ok is true.
func eventually[T api.Object](t testing.TB, c client.Client, what string, ok func(T) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for e, err := range c.Watch(ctx, api.KindFor[T](), client.Query{}, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if o, is := e.Object.(T); is && e.Op != client.Deleted && ok(o) {
			return
		}
	}
	t.Fatalf("not seen: %s", what)
}

// The control plane out of single processes: a Deployment becomes pods that are bound to a node, with upstream's roles alone.
func TestControlPlaneAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	t.Parallel()
	dir, c := apiServerForTest(t)
	file := func(name string) string { return filepath.Join(dir, name+".kubeconfig") }
	first := begin(t, "controller-manager", "--kubeconfig", file("controller-manager"), "--use-service-account-credentials", "--cluster-cidr", "10.99.0.0/16", "--secure-port", "0",
		"--service-account-private-key-file", filepath.Join(dir, "pki", "sa.pem"))
	schedulerPort, managerPort := freePort(t), freePort(t)
	begin(t, "scheduler", "--kubeconfig", file("scheduler"), "--secure-port", schedulerPort)
	room := corev1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("4Gi"), "pods": resource.MustParse("110")}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{
		Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}},
		Allocatable: room, Capacity: room,
	}}
	if _, err := client.Create(t.Context(), c, node); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "a node with pod addresses", func(n *corev1.Node) bool { return n.Spec.PodCIDR == "10.99.0.0/24" })
	eventually(t, c, "the service account", func(a *corev1.ServiceAccount) bool { return a.Namespace == "default" && a.Name == "default" })
	token := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "token", Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}},
		Type: corev1.SecretTypeServiceAccountToken}
	if _, err := client.Create(t.Context(), c, token); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "a token in its Secret", func(s *corev1.Secret) bool { return len(s.Data[corev1.ServiceAccountTokenKey]) > 0 })
	one := int32(1)
	labels := map[string]string{"app": "web"}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Image: "web"}}}}}}
	if _, err := client.Create(t.Context(), c, deployment); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "a bound pod", func(p *corev1.Pod) bool { return p.Spec.NodeName == "n1" })
	extendedAlone(t, c)
	// Another takes over when the first has gone.
	first.end()
	begin(t, "controller-manager", "--kubeconfig", file("admin"), "--secure-port", managerPort)
	if _, err := client.Create(t.Context(), c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "later"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "the service account of a new namespace", func(a *corev1.ServiceAccount) bool { return a.Namespace == "later" })
	checkTold(t, file, "scheduler", schedulerPort, "go_goroutines ")
	checkTold(t, file, "controller-manager", managerPort, "workqueue_adds_total{")
	if said := first.said(); strings.Contains(said, "forbidden") {
		t.Errorf("roles do not suffice:\n%s", said)
	}
}

// extendedAlone has a pod served by a class of devices, and counted by a quota of what that is called: the scheduler makes a claim, as it may.
func extendedAlone(t *testing.T, c client.Client) {
	t.Helper()
	class := &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "gpu"}, Spec: resourcev1.DeviceClassSpec{ExtendedResourceName: new("example.com/gpu")}}
	slice := &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: "gpus"}, Spec: resourcev1.ResourceSliceSpec{Driver: "gpu.example.com", NodeName: new("n1"),
		Pool: resourcev1.ResourcePool{Name: "n1", ResourceSliceCount: 1}, Devices: []resourcev1.Device{{Name: "d1"}}}}
	one := corev1.ResourceList{"deviceclass.resource.kubernetes.io/gpu": resource.MustParse("1")}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "gpu"}, Spec: corev1.PodSpec{Containers: []corev1.Container{
		{Name: "c", Image: "web", Resources: corev1.ResourceRequirements{Limits: one}}}}}
	for _, o := range []api.Object{class, slice, pod} {
		if _, err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, c, "a pod with a device", func(p *corev1.Pod) bool {
		return p.Name == "gpu" && p.Spec.NodeName == "n1" && p.Status.ExtendedResourceClaimStatus != nil
	})
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "gpus"}, Spec: corev1.ResourceQuotaSpec{
		Hard: corev1.ResourceList{"requests.example.com/gpu": resource.MustParse("5"), "requests.deviceclass.resource.kubernetes.io/gpu": resource.MustParse("5")}}}
	if _, err := c.Create(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "the quota's use", func(q *corev1.ResourceQuota) bool {
		own, class := q.Status.Used["requests.example.com/gpu"], q.Status.Used["requests.deviceclass.resource.kubernetes.io/gpu"]
		return own.Value() == 1 && class.Value() == 1
	})
}

// checkTold asks the server of a component that runs alone: health needs no credentials, metrics need leave.
func checkTold(t *testing.T, file func(string) string, component, port, metric string) {
	t.Helper()
	for _, c := range []struct {
		user, path string
		code       int
		want       string
	}{
		{"", "/healthz", 200, "ok"}, {"", "/livez/ping", 200, "ok"}, {"", "/readyz?verbose", 200, "[+]" + component + " ok\n"},
		{"", "/metrics", 401, "Unauthorized"}, {"proxy", "/metrics/slis", 403, `User "system:kube-proxy" cannot get path "/metrics/slis"`},
		{"admin", "/metrics", 200, metric},
		{"admin", "/metrics/slis", 200, `kubernetes_healthchecks_total{name="` + component + `",status="success",type="readyz"} 1`},
	} {
		cfg := &rest.Config{}
		if c.user != "" {
			var err error
			if cfg, err = (&peer{kubeconfig: file(c.user)}).rest(); err != nil {
				t.Fatal(err)
			}
		}
		cfg.CAData, cfg.CAFile, cfg.Insecure = nil, "", true // nobody has signed its certificate
		h, err := rest.HTTPClientFor(cfg)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := h.Get("https://127.0.0.1:" + port + c.path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		h.CloseIdleConnections()
		if err != nil || resp.StatusCode != c.code || !strings.Contains(string(b), c.want) {
			t.Errorf("%s, %s as %q: %d %s %v", component, c.path, c.user, resp.StatusCode, b, err)
		}
	}
}

// The runtime serves CRI, and leaves nothing when it ends without containers.
func TestRuntimeAlone(t *testing.T) {
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("starts processes, as root")
	}
	if i, err := oci.OpenInit(); errors.Is(err, oci.ErrNoInit) || errors.Is(err, linux.ErrNotSupported) {
		t.Skip(err)
	} else if err == nil {
		i.Close()
	}
	t.Parallel()
	data, run := t.TempDir(), fmt.Sprintf("/run/yare-test-%d", os.Getpid())
	t.Cleanup(func() { os.RemoveAll(run) })
	socket := filepath.Join(run, "cri.sock")
	p := begin(t, "runtime", "--socket", socket, "--data-dir", data, "--run-dir", run, "--cgroup-parent", fmt.Sprintf("/yare-test-%d", os.Getpid()),
		"--cni-conf-dir", filepath.Join(data, "none"))
	c, err := cri.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, cond := range s.Status.Conditions {
		if want := cond.Type == "RuntimeReady"; cond.Status != want { // there is no network
			t.Errorf("%+v", cond)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	p.end()
	if _, err := net.Dial("unix", socket); err == nil {
		t.Error("the socket is still served")
	}
}

// Mistakes on the command line are told by the flag's name, before anything is made.
func TestComponentMistakes(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"scheduler", "--kubeconfig is required"},
		{"scheduler --kubeconfig /nowhere", "/nowhere"},
		{"controller-manager --kubeconfig /nowhere", "/nowhere"},
		{"apiserver --data-dir /nowhere/x --service-cluster-ip-range 10.0.0.0/30", "is from /8 to /28"},
		{"apiserver --data-dir /nowhere/x --service-cluster-ip-range 10.0.0.0/16,10.1.0.0/16", "second of its family"},
		{"apiserver --data-dir /nowhere/x --service-cluster-ip-range fd00::/48", "is from /64 to /120"},
		{"apiserver --data-dir /nowhere/x --service-cluster-ip-range 10.0.0.0/16,fd00::/112,10.1.0.0/16", "are 3"},
		{"controller-manager --kubeconfig /dev/null --cluster-cidr 10.0.0.0/16,10.1.0.0/16", "--cluster-cidr: 10.0.0.0/16,10.1.0.0/16: give one range, or one of IPv4"},
		{"apiserver --data-dir /nowhere/x --service-node-port-range 9", "FIRST-LAST"},
		{"apiserver --data-dir /nowhere/x --advertise-address 127.0.0.1", "loopback"},
		{"apiserver --data-dir /nowhere/x --etcd-servers 1.2.3.4", "https://HOST:PORT"},
		{"apiserver --data-dir /nowhere/x --etcd-certfile x", "etcdKeyFile"},
		{"proxy --cluster-cidr nonsense --kubeconfig /nowhere", "--cluster-cidr"},
		{"kubelet --config /nowhere", "/nowhere"},
		{"kubelet --join /nowhere", "/nowhere"},
		{"agent", "--join is required"},
		{"agent --join /nowhere", "/nowhere"},
		{"image pull", "Usage: yare image pull REF"},
		{"image pul x", "unknown command \"pul\": 'yare image --help'"},
		{"oci crate x", "unknown command \"crate\": 'yare oci --help'"},
		{"runtime --pod-cidr 10.0.0.0", "--pod-cidr"},
		{"node-credentials n1 --data-dir /nowhere --cluster-cidr 10.0.0.0/16 --server https://x", "--address is required"},
		{"node-credentials n1 --data-dir /nowhere --cluster-cidr 10.0.0.0/16,fd00::/56 --server https://x --address 1.1.1.1", "--address: none is of the family of fd00::/56"},
		{"node-credentials N! --data-dir /nowhere --cluster-cidr 10.0.0.0/16 --server https://x --address 1.1.1.1", "node name"},
	} {
		c := command()
		c.SetArgs(strings.Fields(tt.args))
		c.SetOut(new(strings.Builder))
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.args, err)
		}
	}
	if _, err := os.Stat("/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made: %v", err)
	}
}
