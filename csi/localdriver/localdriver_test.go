package localdriver

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/csi"
	"github.com/yare-dev/yare/csi/csitest"
	"github.com/yare-dev/yare/linux/socket"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// start runs a driver until the test ends, and returns where the kubelet finds it.
func start(t *testing.T, dir string, c client.Client) (kubelet string) {
	t.Helper()
	kubelet = filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	d := New(Config{NodeName: "n1", Dir: dir, KubeletDir: kubelet, Client: c, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- d.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return kubelet
}

// dial finds the driver as a kubelet does.
func dial(t *testing.T, kubelet string) *csi.Client {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithContextDialer(socket.To(filepath.Join(kubelet, "plugins_registry", "local.csi.yare.dev-reg.sock"))), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	info, err := registerapi.NewRegistrationClient(conn).GetInfo(t.Context(), &registerapi.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.Type != registerapi.CSIPlugin || info.Name != claim.LocalDriver || !slices.Equal(info.SupportedVersions, []string{"1.0.0"}) {
		t.Errorf("registration %v", info)
	}
	c, err := csi.Dial(info.Name, info.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	at, err := grpc.NewClient("passthrough:///localhost", grpc.WithContextDialer(socket.To(info.Endpoint)), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if is, err := spec.NewIdentityClient(at).GetPluginInfo(t.Context(), &spec.GetPluginInfoRequest{}); err != nil || is.Name != info.Name {
		t.Error(is, err)
	}
	return c
}

func TestSuite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volumes")
	n := dial(t, start(t, dir, rt.New(t)))
	csitest.Suite(t, n, csitest.Volume{Handle: "pvc-1", Context: map[string]string{claim.LocalNode: "n1"}})
	if b, err := os.ReadFile(filepath.Join(dir, contents, "pvc-1", "f")); err != nil || string(b) != "x" {
		t.Error("what was written is not kept:", err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Error("others can reach the volumes:", st.Mode(), err)
	}
}

func publish(target, handle string, change ...func(*spec.NodePublishVolumeRequest)) *spec.NodePublishVolumeRequest {
	r := &spec.NodePublishVolumeRequest{VolumeId: handle, TargetPath: target, VolumeContext: map[string]string{claim.LocalNode: "n1"},
		VolumeCapability: &spec.VolumeCapability{AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}},
			AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}}
	for _, f := range change {
		f(r)
	}
	return r
}

func options(list ...string) func(*spec.NodePublishVolumeRequest) {
	return func(r *spec.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().MountFlags = list }
}

// What cannot be is refused by name, before anything is made.
func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	n := dial(t, start(t, dir, rt.New(t)))
	target := filepath.Join(t.TempDir(), "target")
	outside := filepath.Join(filepath.Dir(dir), "outside")
	for _, tt := range []struct {
		name, want string
		r          *spec.NodePublishVolumeRequest
	}{
		{"a path", "volume handle", publish(target, "../../outside")},
		{"dots", "volume handle", publish(target, "..")},
		{"a folder below", "volume handle", publish(target, "a/b")},
		{"nothing", "volume handle", publish(target, "")},
		{"another node's", "on node n2, this is n1", publish(target, "v", func(r *spec.NodePublishVolumeRequest) { r.VolumeContext = map[string]string{claim.LocalNode: "n2"} })},
		{"a relative target", "absolute path", publish("target", "v")},
		{"a block device", "volumeMode Block is not supported", publish(target, "v", func(r *spec.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}
		})},
		{"a file system", "leave fsType xfs out", publish(target, "v", func(r *spec.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().FsType = "xfs" })},
		{"a file system's option", "mount option discard", publish(target, "v", options("noatime", "discard"))},
	} {
		err := n.Publish(t.Context(), tt.r)
		if csi.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	for _, path := range []string{target, outside} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was made", path)
		}
	}
	d, err := openData(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if names, err := d.handles(); err != nil || len(names) > 0 {
		t.Errorf("made %v %v", names, err)
	}
	for _, handle := range []string{"..", "../../outside", "/etc", ""} {
		if d.remove(handle) == nil {
			t.Errorf("%q was removed", handle)
		}
	}
	// A link that leads out of the folder is not followed.
	if err := os.Symlink("/etc", filepath.Join(dir, contents, "link")); err != nil {
		t.Fatal(err)
	}
	if err := n.Publish(t.Context(), publish(target, "link")); err == nil {
		t.Error("a link was followed")
	}
}

func TestOptions(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	n := dial(t, start(t, t.TempDir(), rt.New(t)))
	target := filepath.Join(t.TempDir(), "target")
	mounted := func(change ...func(*spec.NodePublishVolumeRequest)) (readOnly bool) {
		t.Helper()
		if err := n.Publish(t.Context(), publish(target, "v", change...)); err != nil {
			t.Fatal(err)
		}
		readOnly = os.WriteFile(filepath.Join(target, "f"), nil, 0o600) != nil
		if err := n.Unpublish(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: target}); err != nil {
			t.Fatal(err)
		}
		return readOnly
	}
	if mounted(options("noexec", "noatime")) {
		t.Error("it is read-only")
	}
	if !mounted(options("ro")) || !mounted(func(r *spec.NodePublishVolumeRequest) { r.Readonly = true }) {
		t.Error("it is not read-only")
	}
}

// What was there once is not replaced by nothing: a node that was rebuilt, or lacks the disk with its data, refuses.
func TestLost(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	c := rt.New(t)
	dir, target := t.TempDir(), filepath.Join(t.TempDir(), "target")
	n := dial(t, start(t, dir, c))
	undo := func() {
		t.Helper()
		if err := n.Unpublish(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: "v", TargetPath: target}); err != nil {
			t.Fatal(err)
		}
	}
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Labels: map[string]string{claim.LocalNode: "n1"}}}
	v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: claim.LocalDriver, VolumeHandle: "v", VolumeAttributes: map[string]string{claim.LocalNode: "n1"}}
	rt.Create(t, c, v)
	for _, name := range []string{"other", "theirs"} {
		o := v.DeepCopy()
		o.Name, o.Spec.CSI.VolumeHandle = name, "v-"+name
		rt.Create(t, c, o)
	}
	made := func() (names []string) {
		for _, v := range rt.List[*corev1.PersistentVolume](t, c) {
			if v.Annotations[claim.LocalMade] == "true" {
				names = append(names, v.Name)
			}
		}
		return names
	}
	// The note fails, and by the time it is written again somebody else has written too: nothing is mounted without it.
	var fail error
	c.Refuse = func(verb string, _ *api.Kind, _ api.Key) (err error) {
		if verb == "update" {
			err, fail = fail, nil
		}
		return err
	}
	fail = context.DeadlineExceeded
	if err := n.Publish(t.Context(), publish(target, "v")); err == nil || len(made()) > 0 {
		t.Error("published without a note:", err, made())
	}
	undo()
	fail = apierrors.NewConflict(api.PersistentVolumeKind.GroupResource(), "pv", errors.New("changed"))
	if err := n.Publish(t.Context(), publish(target, "v")); err != nil || !slices.Equal(made(), []string{"pv"}) {
		t.Fatal(err, made())
	}
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	undo()
	// Another disk, or none.
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(filepath.Join(dir, contents, "v"), away); err != nil {
		t.Fatal(err)
	}
	err := n.Publish(t.Context(), publish(target, "v"))
	if csi.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "is not on this node any more") || !strings.Contains(err.Error(), "annotation "+claim.LocalMade) {
		t.Error(err)
	}
	undo()
	if err := os.Rename(away, filepath.Join(dir, contents, "v")); err != nil {
		t.Fatal(err)
	}
	if err := n.Publish(t.Context(), publish(target, "v")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(target, "f")); err != nil {
		t.Error(err)
	}
	undo()
	// Who says so begins anew.
	if err := os.RemoveAll(filepath.Join(dir, contents, "v")); err != nil {
		t.Fatal(err)
	}
	rt.Mutate(t, c, rt.Get[*corev1.PersistentVolume](t, c, "", "pv"), "", func(v *corev1.PersistentVolume) { v.Annotations = nil })
	if err := n.Publish(t.Context(), publish(target, "v")); err != nil || !slices.Equal(made(), []string{"pv"}) {
		t.Error(err, made())
	}
	undo()
}

// A driver that was killed at any step goes on: nothing is left of what was being made or removed, and nothing else is touched.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"data/kept/f", "making/half/f", "removed/half/deep/f"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := openData(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := d.sweep(); err != nil {
		t.Error(err)
	}
	if got := tree(t, dir); !slices.Equal(got, []string{"data", "data/kept", "data/kept/f", "making", "removed"}) {
		t.Error(got)
	}
	// Between mkdir and chmod, and between chmod and rename.
	for _, mode := range []os.FileMode{0o700, 0o777} {
		if err := os.MkdirAll(filepath.Join(dir, "making/v"), mode); err != nil {
			t.Fatal(err)
		}
		f, err := d.open("v", false)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if st, err := os.Stat(filepath.Join(dir, "data/v")); err != nil || st.Mode().Perm() != anyone {
			t.Error(st.Mode(), err)
		}
		// What pods make of its mode stays.
		if err := os.Chmod(filepath.Join(dir, "data/v"), 0o750); err != nil {
			t.Fatal(err)
		}
		if f, err = d.open("v", false); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if st, err := os.Stat(filepath.Join(dir, "data/v")); err != nil || st.Mode().Perm() != 0o750 {
			t.Error(st.Mode(), err)
		}
		for range 2 {
			if err := d.remove("v"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := tree(t, dir); !slices.Equal(got, []string{"data", "data/kept", "data/kept/f", "making", "removed"}) {
		t.Error(got)
	}
}

// What a pod has mounted in its volume is not removed with it.
func TestMountedInVolume(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	d, err := openData(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	f, err := d.open("v", false)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	other := t.TempDir()
	for _, path := range []string{filepath.Join(other, "precious"), filepath.Join(d.path, contents, "v", "own")} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := filepath.Join(d.path, contents, "v", "mnt")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(other, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(d.path, removed, "v", "mnt")
	t.Cleanup(func() {
		for _, path := range []string{at, moved} {
			_ = unix.Unmount(path, unix.MNT_DETACH)
		}
	})
	for range 2 {
		if err := d.remove("v"); err == nil || !strings.Contains(err.Error(), "is mounted in it") {
			t.Error(err)
		}
		if err := d.sweep(); err == nil || !strings.Contains(err.Error(), "is mounted in it") {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(other, "precious")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(moved, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.remove("v"); err != nil {
		t.Error(err)
	}
	if got := tree(t, d.path); !slices.Equal(got, []string{"data", "making", "removed"}) {
		t.Error(got)
	}
}

func tree(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if p != dir {
			p, _ := filepath.Rel(dir, p)
			paths = append(paths, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// volume is a volume of the node that is kept by the finalizer, and has a folder.
func volume(t *testing.T, d *data, name string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	t.Helper()
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{claim.LocalNode: "n1"}, Finalizers: []string{claim.LocalData}}}
	v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: claim.LocalDriver, VolumeHandle: name, VolumeAttributes: map[string]string{claim.LocalNode: "n1"}}
	v.Status.Phase = corev1.VolumeReleased
	for _, f := range change {
		f(v)
	}
	f, err := d.open(v.Spec.CSI.VolumeHandle, false)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return v
}

// Data goes with its volume, and with nothing else.
func TestCollects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, err := openData(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer d.close()
		c := rt.New(t)
		held := func(v *corev1.PersistentVolume) { v.Finalizers = append(v.Finalizers, "kubernetes.io/pv-protection") }
		elsewhere := func(v *corev1.PersistentVolume) {
			v.Spec.CSI.VolumeAttributes, v.Labels = map[string]string{claim.LocalNode: "n2"}, map[string]string{claim.LocalNode: "n2"}
		}
		lying := func(v *corev1.PersistentVolume) {
			v.Spec.CSI.VolumeAttributes = map[string]string{claim.LocalNode: "n2"}
		}
		others := func(v *corev1.PersistentVolume) { v.Spec.CSI.Driver = "disk" }
		retained := func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		}
		bound := func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeBound }
		twin := func(v *corev1.PersistentVolume) { v.Spec.CSI.VolumeHandle = "shared" }
		made := map[string]*corev1.PersistentVolume{}
		for name, change := range map[string]func(*corev1.PersistentVolume){"gone": func(*corev1.PersistentVolume) {}, "alive": func(*corev1.PersistentVolume) {}, "held": held,
			"elsewhere": elsewhere, "lying": lying, "others": others, "retained": retained, "bound": bound, "twin": twin, "other-twin": twin} {
			made[name] = rt.Create(t, c, volume(t, d, name, change))
		}
		gone := func(names ...string) {
			for _, name := range names {
				rt.Delete(t, c, made[name], client.DeleteOptions{})
			}
		}
		gone("gone") // while the node was away
		collector := &collector{node: "n1", client: c, data: d, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- collector.Run(ctx, func() {}) }()
		expect := func(want string) {
			t.Helper()
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			names, err := d.handles()
			slices.Sort(names)
			if got := strings.Join(names, " "); got != want || err != nil {
				t.Errorf("folders %s (%v), want %s", got, err, want)
			}
		}
		expect("alive bound elsewhere held lying others retained shared")
		gone("held", "elsewhere", "lying", "others", "retained", "bound", "twin")
		expect("alive bound elsewhere held lying others retained shared")
		rt.Mutate(t, c, made["held"], "", func(v *corev1.PersistentVolume) { v.Finalizers = []string{claim.LocalData} })
		gone("other-twin")
		expect("alive bound elsewhere lying others retained")
		// A write that fails is repeated, after the data is gone.
		fails := 3
		c.Refuse = func(verb string, _ *api.Kind, _ api.Key) error {
			if verb == "update" && fails > 0 {
				fails--
				return context.DeadlineExceeded
			}
			return nil
		}
		gone("alive")
		expect("bound elsewhere lying others retained")
		left := ""
		for _, v := range rt.List[*corev1.PersistentVolume](t, c) {
			left += v.Name + " "
		}
		if left != "bound elsewhere lying others retained " || fails > 0 {
			t.Error(left, fails)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
