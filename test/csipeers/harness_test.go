package csipeers

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

var (
	yareProgram   = flag.String("yare", "", "the program yare; empty: bin/yare of this repository")
	driverProgram = flag.String("driver", "", "the program hostpathplugin of csi-driver-host-path; empty: built from -driver-source")
	driverSource  = flag.String("driver-source", "", "folder of csi-driver-host-path's source, with its vendor folder")
	clusterName   = flag.String("name", "csipeers", "name of the cluster")
)

const driverName = "hostpath.csi.k8s.io"

// bed is a cluster with the driver on its node.
type bed struct {
	t        *testing.T
	work     string
	yare     string
	root     string // the kubelet's folder
	*process        // the driver's, shared by the parts of a test
}

// process is the driver's.
type process struct {
	driver   *exec.Cmd // nil while it is away
	register *registration
	control  spec.ControllerClient
}

// newBed starts all, and checks at the end of the test that nothing is left.
func newBed(t *testing.T, args ...string) *bed {
	t.Helper()
	b := newCluster(t)
	b.startDriver(args...)
	return b
}

// newCluster starts a cluster without a driver.
func newCluster(t *testing.T) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a cluster needs root")
	}
	b := &bed{t: t, work: t.TempDir(), yare: *yareProgram, process: &process{}}
	if b.yare == "" {
		b.yare = "../../bin/yare"
	}
	var err error
	if b.yare, err = filepath.Abs(b.yare); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", filepath.Join(b.work, "kubeconfig"))
	own := b.ownRoot()
	b.run(b.yare, "up", "--name", *clusterName, "--data-dir", filepath.Join(b.work, "data"))
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := exec.Command(b.yare, "kubectl", "get", "pods,pv,pvc,events,csinodes", "-A").CombinedOutput()
			log, _ := exec.Command("tail", "-n", "60", filepath.Join(b.work, "data", "server.log")).CombinedOutput()
			t.Logf("%s\n%s", out, log)
		}
		b.stopDriver()
		b.run(b.yare, "down", "--name", *clusterName)
		if left := b.mounts(); len(left) > 0 {
			t.Error("mounts left: ", left)
		}
		if to, _ := os.Readlink(usual); to == own {
			t.Error(usual, " is left")
		}
	})
	if b.root = usual; !b.isUsual() {
		b.root = own // another cluster of this host is at the usual place
	}
	b.image()
	b.apply("{apiVersion: v1, kind: Secret, metadata: {namespace: kube-system, name: disks}, stringData: {user: somebody}}")
	return b
}

// usual is where everybody looks for a kubelet.
const usual = "/var/lib/kubelet"

func (b *bed) ownRoot() string { return filepath.Join(b.work, "data", "kubelet") }

// isUsual reports whether the cluster's kubelet is where everybody looks for it.
func (b *bed) isUsual() bool {
	to, err := os.Readlink(usual)
	return err == nil && to == b.ownRoot()
}

// mounts lists those of the cluster and of the driver.
func (b *bed) mounts() (own []string) {
	b.t.Helper()
	for _, point := range strings.Fields(b.run("findmnt", "-rno", "TARGET")) {
		if strings.HasPrefix(point, b.work) || strings.Contains(point, "/yare/"+*clusterName+"/") {
			own = append(own, point)
		}
	}
	return own
}

// run runs a program, which must succeed, and returns what it says.
func (b *bed) run(program string, args ...string) string {
	b.t.Helper()
	var out, bad bytes.Buffer
	c := exec.Command(program, args...)
	c.Stdout, c.Stderr = &out, &bad
	if err := c.Run(); err != nil {
		b.t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), err, &out, &bad)
	}
	return out.String()
}

func (b *bed) kubectl(args ...string) string {
	b.t.Helper()
	return b.run(b.yare, append([]string{"kubectl"}, args...)...)
}

// apply makes objects.
func (b *bed) apply(text string) {
	b.t.Helper()
	c := exec.Command(b.yare, "kubectl", "apply", "-f", "-")
	c.Stdin = strings.NewReader(text)
	if out, err := c.CombinedOutput(); err != nil {
		b.t.Fatalf("apply: %v\n%s\n%s", err, out, text)
	}
}

// wait waits until kubectl get shows what is wanted by a JSON path.
func (b *bed) wait(want string, args ...string) {
	b.t.Helper()
	var got string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		out, err := exec.Command(b.yare, append([]string{"kubectl", "get"}, args...)...).Output()
		if got = string(out); err == nil && got == want {
			return
		}
	}
	b.t.Fatalf("kubectl get %s shows %q, want %q", strings.Join(args, " "), got, want)
}

func (b *bed) running(pod string) {
	b.t.Helper()
	b.wait("True", "pod", pod, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
}

// box runs a verb of box in a pod.
func (b *bed) box(pod string, args ...string) string {
	b.t.Helper()
	return b.kubectl(append([]string{"exec", pod, "--", "/box"}, args...)...)
}

// image makes the image of the pods.
func (b *bed) image() {
	b.t.Helper()
	dir := filepath.Join(b.work, "image")
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	b.run("go", "build", "-o", filepath.Join(dir, "box"), "./box")
	b.run(b.yare, "image", "build-from", dir, "--name", *clusterName, "--tag", "box:1", "--entrypoint", "/box")
}

// program returns the driver's.
func (b *bed) program() string {
	b.t.Helper()
	if *driverProgram != "" {
		return *driverProgram
	}
	if *driverSource == "" {
		b.t.Skip("no driver: name its source (git clone https://github.com/kubernetes-csi/csi-driver-host-path) by -driver-source, or its program by -driver")
	}
	program := filepath.Join(b.work, "hostpathplugin")
	c := exec.Command("go", "build", "-ldflags=-X main.version=test", "-o", program, "./cmd/hostpathplugin")
	c.Dir, c.Env = *driverSource, append(os.Environ(), "GOFLAGS=-mod=vendor", "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		b.t.Fatalf("build the driver: %v\n%s", err, out)
	}
	return program
}

func (b *bed) socket() string { return filepath.Join(b.root, "plugins", "csi-hostpath", "csi.sock") }

// startDriver starts the driver and registers it.
func (b *bed) startDriver(args ...string) {
	b.t.Helper()
	program := b.program()
	if err := os.MkdirAll(filepath.Dir(b.socket()), 0o755); err != nil {
		b.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(b.work, "driver.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	b.driver = exec.Command(program, append([]string{"--drivername=" + driverName, "--v=5", "--endpoint=unix://" + b.socket(), "--nodeid=the-node",
		"--statedir=" + filepath.Join(b.work, "volumes")}, args...)...)
	b.driver.Stdout, b.driver.Stderr = log, log
	if err := b.driver.Start(); err != nil {
		b.t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+b.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.t.Fatal(err)
	}
	b.control = spec.NewControllerClient(conn)
	if _, err := spec.NewIdentityClient(conn).Probe(b.context(), &spec.ProbeRequest{}, grpc.WaitForReady(true)); err != nil {
		b.t.Fatal(err)
	}
	b.register = b.registerDriver()
}

// stopDriver ends it, as a pod's end does.
func (b *bed) stopDriver() {
	if b.driver == nil {
		return
	}
	if b.register != nil {
		b.register.stop()
	}
	_ = b.driver.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(5*time.Second, func(p *os.Process) func() { return func() { _ = p.Kill() } }(b.driver.Process))
	_ = b.driver.Wait()
	kill.Stop()
	b.driver = nil
}

func (b *bed) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	b.t.Cleanup(cancel)
	return ctx
}

// registration is what node-driver-registrar is in a driver's pod.
type registration struct {
	registerapi.UnimplementedRegistrationServer
	socket string
	told   chan *registerapi.RegistrationStatus
	stop   func()
}

func (r *registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.CSIPlugin, Name: driverName, Endpoint: r.socket, SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	select {
	case r.told <- s:
	default:
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

func (b *bed) registerDriver() *registration {
	b.t.Helper()
	r := &registration{socket: b.socket(), told: make(chan *registerapi.RegistrationStatus, 1)}
	l, err := net.Listen("unix", filepath.Join(b.root, "plugins_registry", driverName+"-reg.sock"))
	if err != nil {
		b.t.Fatal(err)
	}
	s := grpc.NewServer()
	registerapi.RegisterRegistrationServer(s, r)
	go func() { _ = s.Serve(l) }()
	r.stop = s.Stop
	select {
	case told := <-r.told:
		if !told.PluginRegistered {
			b.t.Fatal("the driver is not registered: ", told.Error)
		}
	case <-b.context().Done():
		b.t.Fatal("the driver was not taken up")
	}
	return r
}

// volume makes a volume by the driver's controller service, as a provisioner does.
func (b *bed) volume(name string, bytes int64, c *spec.VolumeCapability) *spec.Volume {
	b.t.Helper()
	r, err := b.control.CreateVolume(b.context(), &spec.CreateVolumeRequest{Name: name, CapacityRange: &spec.CapacityRange{RequiredBytes: bytes},
		VolumeCapabilities: []*spec.VolumeCapability{writer(c)}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		if b.driver != nil {
			_, _ = b.control.DeleteVolume(context.Background(), &spec.DeleteVolumeRequest{VolumeId: r.Volume.VolumeId})
		}
	})
	return r.Volume
}

// writer is the access of one node that writes.
func writer(c *spec.VolumeCapability) *spec.VolumeCapability {
	c.AccessMode = &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}
	return c
}

func files() *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}}}
}

func block() *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}}
}

// persistent makes a PersistentVolume of the driver's volume and a claim of it, both of that name, and waits until they are bound.
func (b *bed) persistent(name string, v *spec.Volume, more string) {
	b.t.Helper()
	b.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s}
spec:
  capacity: {storage: 16Mi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef: {namespace: default, name: %[1]s}
  csi:
    driver: %[2]s
    volumeHandle: %[3]q
    fsType: ext4
    nodeStageSecretRef: {namespace: kube-system, name: disks}
    nodePublishSecretRef: {namespace: kube-system, name: disks}
    nodeExpandSecretRef: {namespace: kube-system, name: disks}
%[4]s
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: %[1]s
  resources: {requests: {storage: 16Mi}}
%[4]s
`, name, driverName, v.VolumeId, more))
	b.wait("Bound", "pvc", name, "-o", "jsonpath={.status.phase}")
}

// driverInfo makes the CSIDriver.
func (b *bed) driverInfo(spec string) {
	b.t.Helper()
	b.apply(fmt.Sprintf(`{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {name: %s}, spec: {%s}}`, driverName, spec))
}

// pod makes a pod of box with one volume and what its container says of it.
func (b *bed) pod(name, volume, container string) {
	b.t.Helper()
	b.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 2
  automountServiceAccountToken: false
  containers: [{name: box, image: "box:1", %s}]
  volumes: [{name: v, %s}]
`, name, container, volume))
}

func claim(name string) string { return fmt.Sprintf("persistentVolumeClaim: {claimName: %s}", name) }

// left lists the driver's traces in the kubelet's folder.
func (b *bed) left() string {
	b.t.Helper()
	out, err := exec.Command("find", b.root+"/plugins/kubernetes.io", b.root+"/pods", "-name", "vol_data.json", "-o", "-name", "globalmount",
		"-o", "-path", "*kubernetes.io~csi*").CombinedOutput()
	if err != nil && !strings.Contains(string(out), "No such file") {
		b.t.Fatal(err)
	}
	return string(out)
}

func (b *bed) wantNothingLeft() {
	b.t.Helper()
	var got string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if got = b.left(); got == "" || strings.Contains(got, "No such file") {
			return
		}
	}
	b.t.Errorf("left:\n%s", got)
}
