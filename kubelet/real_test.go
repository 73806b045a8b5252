package kubelet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/cri/criserver"
	"github.com/yare-dev/yare/image"
	"github.com/yare-dev/yare/kubelet/kubelettest"
	"github.com/yare-dev/yare/linux/netns"
	"github.com/yare-dev/yare/oci/ocitest"
)

// This file runs the kubelet on our own runtime, with real containers.

// bareNetwork gives pods a namespace with a loopback, and says that this is the address.
type bareNetwork struct {
	dir string
	mu  sync.Mutex
	n   int
}

func (b *bareNetwork) NewNamespace(context.Context) (string, error) {
	b.mu.Lock()
	b.n++
	path := filepath.Join(b.dir, fmt.Sprint("ns", b.n))
	b.mu.Unlock()
	return path, netns.New(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}
func (b *bareNetwork) DeleteNamespace(_ context.Context, path string) error {
	return netns.Delete(path)
}
func (b *bareNetwork) Setup(context.Context, cni.Pod) (*cni.Result, error) {
	return &cni.Result{IPs: []cni.IP{{Address: netip.MustParsePrefix("127.0.0.1/32")}}}, nil
}
func (b *bareNetwork) Check(context.Context, cni.Pod) error    { return nil }
func (b *bareNetwork) Status(context.Context) error            { return nil }
func (b *bareNetwork) Teardown(context.Context, cni.Pod) error { return nil }
func (b *bareNetwork) Prune(context.Context, []cni.Pod) error  { return nil }

const busybox = "example.com/busybox:1"

// machine is a node with real containers.
type machine struct {
	testing.TB
	api     *kubelettest.API
	network *bareNetwork
	cri     *cri.Client
	config  Config
	certs   certs
	runs    *Kubelet
	stop    func()
}

func newMachine(t testing.TB) *machine {
	ocitest.Root(t)
	dir, err := os.MkdirTemp("", "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || bytes.Contains(mounts, []byte(dir)) {
			t.Errorf("mounts left below %s (%v)", dir, err)
			return
		}
		os.RemoveAll(dir)
	})
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	images, err := image.Open(image.Config{Dir: filepath.Join(dir, "images")}, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := images.BuildFromDir(t.Context(), ocitest.Rootfs(t), busybox, image.ConfigOptions{Cmd: []string{"sleep", "1000"}}); err != nil {
		t.Fatal(err)
	}
	network := &bareNetwork{dir: filepath.Join(dir, "netns")}
	if err := os.Mkdir(network.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cgroup := ocitest.Cgroup(t)
	runtime, err := criserver.New(criserver.Config{Dir: filepath.Join(dir, "cri"), RunDir: filepath.Join(dir, "r"), CgroupParent: cgroup,
		CDI: []string{filepath.Join(dir, "cdi")}},
		criserver.Deps{Images: images, Network: network, Init: ocitest.Init(t), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	up, down := make(chan struct{}), make(chan error, 1)
	go func() { down <- runtime.Run(ctx, func() { close(up) }) }()
	<-up
	m := &machine{TB: t, api: kubelettest.NewAPI(), network: network, cri: cri.InProcess(runtime), certs: newCerts(t)}
	m.config = Defaults()
	m.config.NodeName, m.config.NodeIPs, m.config.Address, m.config.Port = "n1", []string{"127.0.0.1"}, "127.0.0.1", freePort(t)
	m.config.HealthzPort, m.config.CSIDrivers, m.config.DevicePlugins, m.config.DynamicResources = 0, false, false, false
	m.config.RootDir, m.config.LogDir, m.config.CgroupRoot = filepath.Join(dir, "root"), filepath.Join(dir, "log"), cgroup
	m.config.EvictionHard = map[string]string{} // what this machine is short of just now is not what is tested
	m.start()
	t.Cleanup(func() {
		pods, _, _ := m.api.List(context.Background(), api.PodKind, client.Query{})
		for _, p := range pods { // a test that failed leaves some
			m.remove(p.GetName())
		}
		m.awaitEmpty()
		m.stop()
		cancel()
		if err := <-down; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		k := m.kubelet()
		for _, g := range []string{"/kubepods/burstable", "/kubepods/besteffort", "/kubepods"} {
			if err := k.groups.Remove(cgroup + g); err != nil {
				t.Error(err)
			}
		}
	})
	return m
}

func freePort(t testing.TB) int32 {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

func (m *machine) kubelet() *Kubelet {
	k, err := New(m.config, Deps{Client: m.api, CRI: m.cri, Events: m.api, TLS: m.certs.server,
		Log: slog.New(slog.NewTextHandler(m.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))})
	if err != nil {
		m.Fatal(err)
	}
	return k
}

func (m *machine) start() {
	k := m.kubelet()
	m.runs = k
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- k.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		m.Fatal("the kubelet ended:", err)
	}
	m.stop = func() {
		cancel()
		if err := <-done; err != nil {
			m.Error(err)
		}
	}
}

// await returns the pod as soon as ok is true of it; nil stands for its end.
func (m *machine) await(name string, ok func(*corev1.Pod) bool) *corev1.Pod {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var last *corev1.Pod
	for e := range m.api.Watch(ctx, api.PodKind, client.Query{}, 0) {
		if e.Op == client.Synced && last == nil && ok(nil) {
			return nil
		}
		if e.Object == nil || e.Object.GetName() != name {
			continue
		}
		last = e.Object.(*corev1.Pod)
		if e.Op == client.Deleted {
			last = nil
		}
		if ok(last) {
			return last
		}
	}
	m.Fatalf("pod %s: waited in vain; last seen %v; events %q", name, last != nil, m.api.Events())
	return nil
}

func isReady(p *corev1.Pod) bool {
	return p != nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func (m *machine) remove(name string) {
	m.Helper()
	m.api.DeletePod(api.Key{Namespace: "default", Name: name}, 2)
	m.await(name, func(p *corev1.Pod) bool { return p == nil })
}

func realPod(name string, command ...string) *corev1.Pod {
	p := newPod(name)
	p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = busybox, command
	return p
}

// awaitEmpty waits until the runtime keeps nothing: what the kubelet removes after the API has let go of a pod.
func (m *machine) awaitEmpty() {
	m.Helper()
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if entries, err := os.ReadDir(m.config.LogDir); err != nil || len(entries) == 0 {
			return
		}
	}
	m.Error("pods' logs are still there")
}

func TestRealPod(t *testing.T) {
	m := newMachine(t)
	m.api.Put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "cm"}, Data: map[string]string{"key": "first"}})
	p := realPod("a", "sh", "-c", `echo "name=$NAME key=$(cat /cm/key)"; trap 'exit 0' TERM; while [ ! -e /data/ready ]; do sleep 0.01; done; echo seen; while :; do sleep 0.05; done`)
	c := &p.Spec.Containers[0]
	p.Spec.Volumes = []corev1.Volume{
		{Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
		{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "cm", MountPath: "/cm"}, {Name: "data", MountPath: "/data"}}
	c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
	c.Env = []corev1.EnvVar{{Name: "NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}
	c.Resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")},
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}}
	c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "test -e /data/ready"}}}}
	m.api.Put(p)
	got := m.await("a", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodRunning })
	if isReady(got) {
		t.Error("ready before the probe said so")
	}
	if out, exit := m.execBy(false, "a", "sh", "-c", "echo spdy"); exit != 0 || out != "spdy\n" {
		t.Errorf("exec over SPDY: %d %q", exit, out)
	}
	out, exit := m.exec("a", "sh", "-c", "cat /proc/sys/kernel/hostname /etc/hosts; >/data/ready; exit 3")
	if exit != 3 || !strings.HasPrefix(out, "a\n") || !strings.Contains(out, "127.0.0.1\ta\n") {
		t.Errorf("exec: %d %q", exit, out)
	}
	got = m.await("a", isReady)

	// A new kubelet finds everything as it was.
	m.stop()
	m.start()
	after := m.await("a", isReady)
	if after.Status.ContainerStatuses[0].ContainerID != got.Status.ContainerStatuses[0].ContainerID || after.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the container was replaced by a restart of the kubelet")
	}
	if text := m.get("/containerLogs/default/a/app"); text != "name=a key=first\nseen\n" {
		t.Errorf("log: %q", text)
	}
	if text := m.get("/containerLogs/default/a/app?tailLines=1"); text != "seen\n" {
		t.Errorf("tail: %q", text)
	}
	// A changed ConfigMap arrives in the running container.
	m.api.Put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "cm"}, Data: map[string]string{"key": "second"}})
	if out, exit := m.exec("a", "sh", "-c", "while [ $(cat /cm/key) != second ]; do sleep 0.01; done"); exit != 0 {
		t.Error("the ConfigMap's change did not arrive:", out)
	}
	for path, want := range map[string]string{"/pods": `"name":"a"`, "/stats/summary": `"podRef":{"name":"a"`, "/configz": `"nodeName":"n1"`,
		"/metrics/probes": `prober_probe_total{container="app",namespace="default",pod="a",pod_uid="`, "/metrics/slis": `kubernetes_healthcheck{name="syncloop",type="healthz"} 1`,
		"/metrics": "kubelet_running_pods 1", "/metrics/resource": `container_memory_working_set_bytes{container="app",namespace="default",pod="a"}`} {
		if text := m.get(path); !strings.Contains(text, want) {
			t.Errorf("%s has no %s: %s", path, want, text)
		}
	}
	follow := make(chan string, 1)
	go func() { follow <- m.get("/containerLogs/default/a/app?follow=true") }()
	m.remove("a")
	if text := <-follow; text != "name=a key=first\nseen\n" {
		t.Errorf("followed: %q", text)
	}
	m.awaitEmpty()
}

func TestRealCrashAndMessage(t *testing.T) {
	m := newMachine(t)
	p := realPod("a", "sh", "-c", "echo -n why > /dev/termination-log; exit 7")
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	m.api.Put(p)
	got := m.await("a", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	if s := got.Status.ContainerStatuses[0].State.Terminated; s.ExitCode != 7 || s.Message != "why" || s.Reason != "Error" {
		t.Error(s)
	}
	m.remove("a")
}

// certs are a CA of the test's own, a server's certificate and an administrator's.
type certs struct {
	server *tls.Config
	client *tls.Config
	rest   rest.TLSClientConfig // the client's, once more
}

func newCerts(t testing.TB) certs {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(serial int64, name string, groups []string, ca bool, parent *x509.Certificate) *x509.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name, Organization: groups},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true,
			IPAddresses: []net.IP{net.ParseIP("127.0.0.1")}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		if parent == nil {
			parent = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		return c
	}
	ca := issue(1, "ca", nil, true, nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	pair := func(c *x509.Certificate) []tls.Certificate {
		return []tls.Certificate{{Certificate: [][]byte{c.Raw}, PrivateKey: key}}
	}
	admin := issue(3, "admin", []string{"system:masters"}, false, ca)
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return certs{
		rest:   rest.TLSClientConfig{CAData: text("CERTIFICATE", ca.Raw), CertData: text("CERTIFICATE", admin.Raw), KeyData: text("EC PRIVATE KEY", keyDER)},
		server: &tls.Config{Certificates: pair(issue(2, "kubelet", nil, false, ca)), ClientCAs: pool},
		client: &tls.Config{Certificates: pair(admin), RootCAs: pool},
	}
}

func (m *machine) url(path string) string {
	return fmt.Sprintf("https://127.0.0.1:%d%s", m.config.Port, path)
}

func (m *machine) get(path string) string {
	c := http.Client{Transport: &http.Transport{TLSClientConfig: m.certs.client, DisableKeepAlives: true}}
	resp, err := c.Get(m.url(path))
	if err != nil {
		m.Error(err)
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		m.Errorf("%s: %s %s %v", path, resp.Status, b, err)
	}
	return string(b)
}

// exec runs a command in the pod's container through the kubelet's server, as kubectl does.
func (m *machine) exec(pod string, command ...string) (output string, exit int) {
	m.Helper()
	return m.execBy(true, pod, command...)
}

func (m *machine) execBy(webSocket bool, pod string, command ...string) (output string, exit int) {
	m.Helper()
	q := url.Values{"command": command, "output": {"1"}, "error": {"1"}}
	config := &rest.Config{Host: m.url(""), TLSClientConfig: m.certs.rest}
	to := m.url("/exec/default/" + pod + "/app?" + q.Encode())
	e, err := remotecommand.NewWebSocketExecutor(config, "GET", to)
	if !webSocket {
		u, perr := url.Parse(to)
		if perr != nil {
			m.Fatal(perr)
		}
		e, err = remotecommand.NewSPDYExecutor(config, "POST", u)
	}
	if err != nil {
		m.Fatal(err)
	}
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errs})
	var code utilexec.CodeExitError
	switch {
	case errors.As(err, &code):
		return out.String() + errs.String(), code.Code
	case err != nil:
		m.Fatal(err)
	}
	return out.String() + errs.String(), 0
}
