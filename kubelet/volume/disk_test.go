package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/csi"
	"github.com/yare-dev/yare/csi/csitest"
)

// oneDriver is a node with one driver, or, when it is gone, with none.
type oneDriver struct {
	d    *csitest.Driver
	gone bool
}

func (o *oneDriver) Driver(name string) (csi.Node, error) {
	if o.gone || name != o.d.Name {
		return nil, fmt.Errorf("driver name %s not found", name)
	}
	return o.d.Client(), nil
}

// disks is a node, a driver that needs no attaching, and a pod with a claim ("c") of a volume of it.
type disks struct {
	t     *testing.T
	dir   string
	boot  string
	d     *csitest.Driver
	on    *oneDriver
	v     *Volumes
	o     *objects
	p     *corev1.Pod
	pv    *corev1.PersistentVolume
	drive *storagev1.CSIDriver
}

func newDisks(t *testing.T) *disks {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	s := &disks{t: t, dir: t.TempDir(), boot: "boot1", d: csitest.New("d", t.TempDir())}
	s.on = &oneDriver{d: s.d}
	s.o, s.p = bind(corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "h", VolumeAttributes: map[string]string{"a": "b"}}})
	s.pv = s.o.volumes["pv-c"]
	s.pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	s.drive = &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: storagev1.CSIDriverSpec{AttachRequired: new(false)}}
	s.o.drivers = map[string]*storagev1.CSIDriver{"d": s.drive}
	s.restart()
	t.Cleanup(func() {
		s.d.Hook = nil
		uids, err := s.v.Pods()
		for _, uid := range uids {
			err = errors.Join(err, s.v.Down(context.Background(), uid))
		}
		if left, lerr := mountsBelow(s.dir); err != nil || lerr != nil || len(left) > 0 {
			t.Error("mounts left:", left, err, lerr)
		}
	})
	return s
}

// restart is what a kubelet is after its end, however it came.
func (s *disks) restart() {
	s.v = New(filepath.Join(s.dir, "pods"), Disks{Dir: filepath.Join(s.dir, "plugins", "kubernetes.io", "csi"), Node: "n", Boot: s.boot, Drivers: s.on})
}

// pod is the pod under another UID.
func (s *disks) pod(uid types.UID) *corev1.Pod {
	p := s.p.DeepCopy()
	p.UID = uid
	return p
}

func (s *disks) mount(uid types.UID) error {
	return s.v.Mount(s.t.Context(), s.pod(uid), s.o)
}

func (s *disks) mustMount(uid types.UID) {
	s.t.Helper()
	if err := s.mount(uid); err != nil {
		s.t.Fatal(err)
	}
}

func (s *disks) mustDown(uid types.UID) {
	s.t.Helper()
	if err := s.v.Down(s.t.Context(), uid); err != nil {
		s.t.Fatal(err)
	}
}

func (s *disks) wantCalls(want ...string) {
	s.t.Helper()
	if got := s.d.Calls(); !slices.Equal(got, want) {
		s.t.Errorf("calls %v, want %v", got, want)
	}
}

// wantNothing checks that no trace is left.
func (s *disks) wantNothing() {
	s.t.Helper()
	if b := s.d.Broken(); len(b) > 0 {
		s.t.Error("driver:", b)
	}
	for _, dir := range []string{"pods", "plugins"} {
		_ = filepath.WalkDir(filepath.Join(s.dir, dir), func(p string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				s.t.Error("left:", p)
			}
			return nil
		})
	}
	if used, err := s.v.InUse(); err != nil || len(used) > 0 {
		s.t.Error("in use:", used, err)
	}
}

// A volume is staged once, for all pods that have it, published for each, and unstaged after the last.
func TestDiskLife(t *testing.T) {
	s := newDisks(t)
	s.mustMount("u1")
	s.wantCalls("Stage h", "Publish h")
	place := filepath.Join(s.v.PodDir("u1"), "volumes", "kubernetes.io~csi", "pv-c", "mount")
	if err := os.WriteFile(filepath.Join(place, "f"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	stage := s.d.Last("Stage").(*spec.NodeStageVolumeRequest)
	if stage.VolumeContext["a"] != "b" || !strings.HasSuffix(stage.StagingTargetPath, "/plugins/kubernetes.io/csi/d/"+
		"aaa9402664f1a41f40ebbc52c9993eb66aeb366602958fdfaa283b71e64db123/globalmount") {
		t.Error(stage)
	}
	s.mustMount("u1")
	s.mustMount("u2")
	s.wantCalls("Publish h")
	// What is up is so after a restart too.
	s.restart()
	s.mustMount("u1")
	s.wantCalls()
	if p, err := s.v.path(s.pod("u1"), &s.p.Spec.Volumes[0]); err != nil || p != place {
		t.Error(p, err)
	}
	// A machine that was started anew has lost all mounts.
	s.boot = "boot2"
	s.restart()
	s.mustMount("u1")
	s.mustMount("u2")
	s.wantCalls("Stage h", "Publish h", "Publish h")
	// A subPath holds the volume until it goes.
	p := s.pod("u2")
	p.Spec.Containers[0].VolumeMounts[0].SubPath = "sub"
	if _, err := s.v.Mounts(Request{Pod: p, Container: &p.Spec.Containers[0]}); err != nil {
		t.Fatal(err)
	}
	s.mustDown("u1")
	s.wantCalls("Unpublish h")
	s.mustDown("u2")
	s.wantCalls("Unpublish h", "Unstage h")
	s.mustDown("u2")
	s.wantCalls()
	s.wantNothing()
	if b, err := os.ReadFile(filepath.Join(s.d.Dir, "h", "f")); string(b) != "x" {
		t.Error("the content is gone:", err)
	}
}

// Wherever the kubelet is killed, or the driver fails, on the way up and on the way down: the next kubelet undoes all that was done, without
// any object of the API, or completes it. The driver is called in order.
func TestDiskKilled(t *testing.T) {
	killed := errors.New("killed")
	for _, up := range []bool{true, false} {
		for n := 1; ; n++ {
			s := newDisks(t)
			count := 0
			s.d.Hook = func(string, string, bool) error {
				if count++; count == n {
					return killed
				}
				return nil
			}
			err := s.mount("u1")
			if err == nil {
				err = s.v.Down(t.Context(), "u1")
			}
			if err == nil {
				if n != 9 {
					t.Errorf("%d steps, want 8: a call before and after each", n-1)
				}
				break
			}
			s.restart()
			if up {
				s.mustMount("u1")
			}
			s.mustDown("u1")
			s.wantNothing()
		}
	}
}

// A driver that knows a volume no longer, which was deleted behind its pods' back, does not keep them.
func TestDiskUnknown(t *testing.T) {
	s := newDisks(t)
	s.mustMount("u1")
	s.d.Hook = func(string, string, bool) error { return status.Error(codes.NotFound, "no such volume") }
	s.mustDown("u1")
	if left, err := mountsBelow(s.dir); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

// A driver that is gone keeps a pod that it knows of from ending, and no other.
func TestDiskDriverGone(t *testing.T) {
	s := newDisks(t)
	s.mustMount("u1")
	s.on.gone = true
	if err := s.mount("u2"); err == nil || !strings.Contains(err.Error(), `persistentvolume "pv-c": driver name d not found`) {
		t.Error(err)
	}
	s.mustDown("u2")
	if err := s.v.Down(t.Context(), "u1"); err == nil || !strings.Contains(err.Error(), "take volume pv-c from pod: driver name d not found") {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(s.v.PodDir("u1"), "volumes", "kubernetes.io~csi", "pv-c", recordFile)); err != nil {
		t.Error(err)
	}
	s.restart() // a kubelet that comes before the driver
	s.mustMount("u1")
	if next := s.v.Next(s.pod("u1")); next.IsZero() {
		t.Error("the driver is not looked for again")
	}
	s.on.gone = false
	s.mustDown("u1")
	s.wantNothing()
}

// A volume that has to be attached is told to be in use first, and not touched before it is attached.
func TestDiskAttachment(t *testing.T) {
	s := newDisks(t)
	s.drive.Spec.AttachRequired = nil
	changed := 0
	s.v.disks.Changed = func() { changed++ }
	waiting := func(want string) {
		t.Helper()
		if err := s.mount("u1"); !errors.Is(err, ErrWaiting) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		s.wantCalls()
	}
	waiting("does not say yet that the volume is in use")
	used, err := s.v.InUse()
	if want := []corev1.UniqueVolumeName{"kubernetes.io/csi/d^h"}; err != nil || !slices.Equal(used, want) || changed != 1 {
		t.Error(used, changed, err)
	}
	s.v.Reported([]corev1.UniqueVolumeName{"another"})
	waiting("does not say yet that the volume is in use")
	s.v.Reported(used)
	waiting("does not say yet that the volume is attached")
	s.o.node.Status.VolumesAttached = []corev1.AttachedVolume{{Name: used[0]}}
	if err := s.mount("u1"); err == nil || !strings.Contains(err.Error(), "VolumeAttachment csi-") {
		t.Error(err)
	}
	name := claim.AttachmentName("h", "d", "n")
	if name != "csi-9072ed11cc1acb5fa433a877ff339b6311d013f33bddd1d0092711a8ace5b16d" {
		t.Error(name)
	}
	a := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: name}}
	s.o.attached = map[string]*storagev1.VolumeAttachment{name: a}
	waiting("VolumeAttachment csi-")
	a.Status.AttachError = &storagev1.VolumeError{Message: "no slot"}
	if err := s.mount("u1"); err == nil || !strings.Contains(err.Error(), "no slot") {
		t.Error(err)
	}
	a.Status.Attached, a.Status.AttachmentMetadata = true, map[string]string{"device": "/dev/x"}
	s.mustMount("u1")
	s.wantCalls("Stage h", "Publish h")
	if got := s.d.Last("Stage").(*spec.NodeStageVolumeRequest).PublishContext["device"]; got != "/dev/x" {
		t.Error(got)
	}
	if got := s.d.Last("Publish").(*spec.NodePublishVolumeRequest).PublishContext["device"]; got != "/dev/x" {
		t.Error(got)
	}
	s.restart()
	s.v.disks.Changed = func() { changed++ }
	if used, err := s.v.InUse(); err != nil || len(used) != 1 {
		t.Error("after a restart:", used, err)
	}
	s.v.Reported(used)
	s.mustDown("u1")
	if changed != 2 || s.v.isReported(used[0]) {
		t.Error("it is not told that the volume is in use no longer")
	}
	s.wantNothing()
}

// A pod's own volume is told from others by the pod and its name; the driver has to serve such volumes.
func TestDiskOwn(t *testing.T) {
	s := newDisks(t)
	s.p.Spec.Volumes = []corev1.Volume{{Name: "own", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "d", ReadOnly: new(true),
		VolumeAttributes: map[string]string{"size": "1"}, NodePublishSecretRef: &corev1.LocalObjectReference{Name: "s"}}}}}
	s.p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "own", MountPath: "/own"}}
	s.o.secrets = map[string]*corev1.Secret{"default/s": {Data: map[string][]byte{"k": []byte("v")}}}
	if err := s.mount("u1"); err == nil || !strings.Contains(err.Error(), `volume mode "Ephemeral" not supported by driver d`) {
		t.Error(err)
	}
	s.drive.Spec.VolumeLifecycleModes, s.drive.Spec.PodInfoOnMount = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral}, new(true)
	s.mustMount("u1")
	handle := ownHandle("u1", "own")
	s.wantCalls("Publish " + handle)
	r := s.d.Last("Publish").(*spec.NodePublishVolumeRequest)
	text, _ := json.Marshal(r.VolumeContext)
	if want := `{"csi.storage.k8s.io/ephemeral":"true","csi.storage.k8s.io/pod.name":"p","csi.storage.k8s.io/pod.namespace":"default",` +
		`"csi.storage.k8s.io/pod.uid":"u1","csi.storage.k8s.io/serviceAccount.name":"","size":"1"}`; string(text) != want {
		t.Errorf("%s, want %s", text, want)
	}
	if !r.Readonly || r.Secrets["k"] != "v" || len(s.p.Spec.Volumes[0].CSI.VolumeAttributes) != 1 {
		t.Error(r)
	}
	ms, err := s.v.Mounts(Request{Pod: s.pod("u1"), Container: &s.p.Spec.Containers[0]})
	if err != nil || !ms[0].Readonly || ms[0].HostPath != filepath.Join(s.v.PodDir("u1"), "volumes/kubernetes.io~csi/own/mount") {
		t.Error(ms, err)
	}
	s.mustDown("u1")
	s.wantCalls("Unpublish " + handle)
	s.wantNothing()
}

// Block volumes are devices of containers.
func TestDiskBlock(t *testing.T) {
	s := newDisks(t)
	s.pv.Spec.VolumeMode = new(corev1.PersistentVolumeBlock)
	c := &s.p.Spec.Containers[0]
	s.mustMount("u1")
	s.wantCalls("Stage h", "Publish h")
	if _, err := s.v.Mounts(Request{Pod: s.pod("u1"), Container: c}); err == nil || !strings.Contains(err.Error(), "has volumeMode Block, but is specified in volumeMounts") {
		t.Error(err)
	}
	c.VolumeMounts, c.VolumeDevices = nil, []corev1.VolumeDevice{{Name: "c", DevicePath: "/dev/disk"}}
	ds, err := s.v.Devices(s.pod("u1"), c)
	if err != nil || len(ds) != 1 || ds[0].ContainerPath != "/dev/disk" || ds[0].Permissions != "rwm" ||
		ds[0].HostPath != filepath.Join(s.v.disks.Dir, "volumeDevices/publish/pv-c/u1") {
		t.Fatal(ds, err)
	}
	if info, err := os.Stat(ds[0].HostPath); err != nil || info.Mode()&fs.ModeDevice == 0 {
		t.Error(info, err)
	}
	if r := s.d.Last("Stage").(*spec.NodeStageVolumeRequest); r.VolumeCapability.GetBlock() == nil || !strings.HasSuffix(r.StagingTargetPath, "/volumeDevices/staging/pv-c") {
		t.Error(r)
	}
	s.mustDown("u1")
	s.wantCalls("Unpublish h", "Unstage h")
	s.wantNothing()
	s.pv.Spec.VolumeMode, s.pv.Spec.CSI.VolumeHandle = nil, "files"
	s.mustMount("u1")
	if _, err := s.v.Devices(s.pod("u1"), c); err == nil || !strings.Contains(err.Error(), "has volumeMode Filesystem, but is specified in volumeDevices") {
		t.Error(err)
	}
}

// A volume for one pod alone is refused to the next until the first has gone.
func TestDiskAlone(t *testing.T) {
	s := newDisks(t)
	s.pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	s.mustMount("u1")
	if err := s.mount("u2"); err == nil || !strings.Contains(err.Error(), "volume uses the ReadWriteOncePod access mode and is already in use by another pod") {
		t.Error(err)
	}
	s.mustDown("u1")
	s.mustMount("u2")
	s.mustDown("u2")
	// So is one of no driver.
	s.pv.Spec.PersistentVolumeSource = hostAt(t.TempDir(), corev1.HostPathUnset)
	s.mustMount("u1")
	if err := s.mount("u2"); !errors.Is(err, errNotAlone) {
		t.Error(err)
	}
	s.mustDown("u1")
	s.mustMount("u2")
}

// Drivers that want it get tokens, where they want them, and are asked again before these expire.
func TestDiskTokens(t *testing.T) {
	s := newDisks(t)
	s.o.token, s.o.renew = "tok", time.Now().Add(10*time.Second)
	s.drive.Spec.TokenRequests = []storagev1.TokenRequest{{Audience: "vault"}, {}}
	s.drive.Spec.RequiresRepublish = new(true)
	s.mustMount("u1")
	in := s.d.Last("Publish").(*spec.NodePublishVolumeRequest).VolumeContext[csi.Tokens]
	var got map[string]authenticationv1.TokenRequestStatus
	if err := json.Unmarshal([]byte(in), &got); err != nil || got["vault"].Token != "tok" || got[""].Token != "tok" {
		t.Error(in, err)
	}
	if next := s.v.Next(s.pod("u1")); next.Before(time.Now()) || next.After(time.Now().Add(lookEvery)) {
		t.Error("looked after at", next)
	}
	s.drive.Spec.ServiceAccountTokenInSecrets = new(true)
	s.restart()
	s.d.Calls()
	s.mustMount("u1")
	s.wantCalls("Publish h")
	if r := s.d.Last("Publish").(*spec.NodePublishVolumeRequest); r.Secrets[csi.Tokens] == "" || r.VolumeContext[csi.Tokens] != "" {
		t.Error(r)
	}
	s.mustMount("u1")
	s.wantCalls()
	if m := (&mounting{object: s.drive, last: time.Now().Add(-lookEvery)}); !m.due(time.Now()) {
		t.Error("not published again")
	}
}

// How a volume is to be used, as it is told the driver.
func TestDiskCapability(t *testing.T) {
	gid := int64(7)
	for want, c := range map[string]struct {
		modes []corev1.PersistentVolumeAccessMode
		can   []csi.Capability
	}{
		"SINGLE_NODE_WRITER":        {},
		"SINGLE_NODE_MULTI_WRITER":  {modes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, can: []csi.Capability{spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER}},
		"SINGLE_NODE_SINGLE_WRITER": {modes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}, can: []csi.Capability{spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER}},
		"MULTI_NODE_READER_ONLY":    {modes: []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteOnce}},
		"MULTI_NODE_MULTI_WRITER":   {modes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}},
	} {
		m := &mounting{pod: &corev1.Pod{}, pv: &corev1.PersistentVolume{}, can: csi.Capabilities{spec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP: true}}
		m.pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &gid}
		m.pv.Spec.CSI, m.pv.Spec.AccessModes, m.pv.Spec.MountOptions = &corev1.CSIPersistentVolumeSource{FSType: "ext4"}, c.modes, []string{"noatime"}
		for _, k := range c.can {
			m.can[k] = true
		}
		got := m.capability(&disk{})
		if got.AccessMode.Mode.String() != want || got.GetMount().FsType != "ext4" || got.GetMount().VolumeMountGroup != "7" || !slices.Equal(got.GetMount().MountFlags, []string{"noatime"}) {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

// Whose files a volume's are is for the driver, or its CSIDriver, to say.
func TestDiskGroup(t *testing.T) {
	s := newDisks(t)
	s.p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: new(int64(2000))}
	for i, c := range []struct {
		policy storagev1.FSGroupPolicy
		fsType string
		mode   corev1.PersistentVolumeAccessMode
		can    csi.Capability
		want   uint32
	}{
		{storagev1.NoneFSGroupPolicy, "ext4", corev1.ReadWriteOnce, 0, 0},
		{storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy, "", corev1.ReadWriteOnce, 0, 0},
		{storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy, "ext4", corev1.ReadWriteMany, 0, 0},
		{storagev1.FileFSGroupPolicy, "", corev1.ReadWriteMany, spec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP, 0},
		{storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy, "ext4", corev1.ReadWriteOnce, 0, 2000},
		{storagev1.FileFSGroupPolicy, "", corev1.ReadWriteMany, 0, 2000},
	} {
		handle := fmt.Sprint("h", i)
		s.pv.Spec.CSI.VolumeHandle, s.pv.Spec.CSI.FSType, s.pv.Spec.AccessModes = handle, c.fsType, []corev1.PersistentVolumeAccessMode{c.mode}
		s.drive.Spec.FSGroupPolicy = &c.policy
		s.d.Can = []csi.Capability{spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, c.can}
		s.mustMount("u1")
		if _, group := modeOf(t, filepath.Join(s.d.Dir, handle)); group != c.want {
			t.Errorf("%+v: group %d", c, group)
		}
		s.mustDown("u1")
	}
	s.wantNothing()
}
