package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
)

func (o *objects) Claim(name string) (*corev1.PersistentVolumeClaim, error) {
	o.asked++
	if c := o.claims[name]; c != nil {
		return c, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("persistentvolumeclaim"), name)
}

func (o *objects) Volume(name string) (*corev1.PersistentVolume, error) {
	if v := o.volumes[name]; v != nil {
		return v, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("persistentvolumes"), name)
}

func (o *objects) Node() *corev1.Node { return o.node }

func (o *objects) CSIDriver(name string) (*storagev1.CSIDriver, error) {
	if d := o.drivers[name]; d != nil {
		return d, nil
	}
	return nil, apierrors.NewNotFound(storagev1.Resource("csidrivers"), name)
}

func (o *objects) Attachment(name string) (*storagev1.VolumeAttachment, error) {
	if a := o.attached[name]; a != nil {
		return a, nil
	}
	return nil, apierrors.NewNotFound(storagev1.Resource("volumeattachments"), name)
}

func (o *objects) SecretIn(namespace, name string) (*corev1.Secret, error) {
	return o.Secret(namespace + "/" + name)
}

func (o *objects) Say(_ api.Object, _, reason, message string) {
	o.warnings = append(o.warnings, reason+" "+message)
}

func (o *objects) SetClaim(c *corev1.PersistentVolumeClaim, change func(*corev1.PersistentVolumeClaimStatus)) (*corev1.PersistentVolumeClaim, error) {
	c = c.DeepCopy()
	change(&c.Status)
	o.claims[c.Name] = c
	return c, nil
}

// bind returns a Source with a node and with claims c, d, e ... that are bound to the volumes, and a pod of all of them.
func bind(sources ...corev1.PersistentVolumeSource) (*objects, *corev1.Pod) {
	o := &objects{claims: map[string]*corev1.PersistentVolumeClaim{}, volumes: map[string]*corev1.PersistentVolume{},
		node: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"kubernetes.io/hostname": "n"}}}}
	p := podWith()
	for i, s := range sources {
		name := string(rune('c' + i))
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name),
			Annotations: map[string]string{claim.Completed: "yes"}}}
		c.Spec.VolumeName, c.Spec.AccessModes, c.Status.Phase = "pv-"+name, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, corev1.ClaimBound
		pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: c.Spec.VolumeName}}
		pv.Spec.PersistentVolumeSource = s
		pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: name, UID: c.UID}
		o.claims[name], o.volumes[pv.Name] = c, pv
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}})
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/" + name})
	}
	return o, p
}

func localAt(path string) corev1.PersistentVolumeSource {
	return corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}}
}

func hostAt(path string, kind corev1.HostPathType) corev1.PersistentVolumeSource {
	return corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}
}

// bed is a pod with a claim of a volume, and what they are found in.
type bed struct {
	o *objects
	c *corev1.PersistentVolumeClaim
	v *corev1.PersistentVolume
	p *corev1.Pod
}

// What holds a pod up is told in upstream's words, or names the field of the volume.
func TestClaimsThatHoldUp(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk")
	if err := unix.Mknod(disk, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))); err != nil {
		t.Skip("making a device needs root")
	}
	now, block := metav1.Now(), corev1.PersistentVolumeBlock
	for name, c := range map[string]struct {
		source corev1.PersistentVolumeSource
		change func(b bed)
		want   string // "": nothing holds it up
	}{
		"right":     {},
		"no claim":  {change: func(b bed) { b.o.claims = nil }, want: `error processing PVC default/c: persistentvolumeclaim "c" not found`},
		"not bound": {change: func(b bed) { b.c.Annotations = nil }, want: "error processing PVC default/c: PVC is not bound"},
		"going":     {change: func(b bed) { b.c.DeletionTimestamp = &now }, want: "error processing PVC default/c: PVC is being deleted"},
		"going after": {change: func(b bed) {
			b.c.DeletionTimestamp, b.p.Status.Phase = &now, corev1.PodRunning
		}},
		"no volume":           {change: func(b bed) { b.o.volumes = nil }, want: `persistentvolumes "pv-c" not found`},
		"another's volume":    {change: func(b bed) { b.v.Spec.ClaimRef.UID = "before" }, want: `persistentvolume "pv-c": spec.claimRef does not name this claim, of UID uid-c`},
		"block":               {change: func(b bed) { b.v.Spec.VolumeMode = &block }, want: `persistentvolume "pv-c": spec.volumeMode: Block is not supported by this node for hostPath volumes`},
		"block device as one": {source: localAt(disk), change: func(b bed) { b.v.Spec.VolumeMode = &block }},
		"folder as a device":  {source: localAt(dir), change: func(b bed) { b.v.Spec.VolumeMode = &block }, want: dir + " is not a block device, as spec.volumeMode Block says"},
		"other source":        {source: corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}, want: `persistentvolume "pv-c": nfs volumes are not supported by this node`},
		"elsewhere": {change: func(b bed) {
			b.v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "kubernetes.io/hostname", Operator: corev1.NodeSelectorOpIn, Values: []string{"other"}}}}}}}
		}, want: `persistentvolume "pv-c": spec.nodeAffinity: no matching NodeSelectorTerms for node n`},
		"no node":             {change: func(b bed) { b.o.node = nil }, want: "this node is not registered yet"},
		"options of hostPath": {change: func(b bed) { b.v.Spec.MountOptions = []string{"noatime"} }, want: `spec.mountOptions: hostPath volumes, which are not mounted, have none, not noatime`},
		"options of local":    {source: localAt(dir), change: func(b bed) { b.v.Annotations = map[string]string{corev1.MountOptionAnnotation: "noatime,nfsvers=4"} }, want: `spec.mountOptions: "nfsvers=4" is not supported by this node for local volumes: their file system is mounted already`},
		"group":               {change: func(b bed) { b.v.Annotations = map[string]string{groupAnnotation: "staff"} }, want: `metadata.annotations[pv.beta.kubernetes.io/gid]: "staff" is not the number of a group`},
		"wrong type":          {source: hostAt(file, corev1.HostPathDirectory), want: "hostPath type check failed: " + file + " is not a directory"},
		"missing local":       {source: localAt(dir + "/none"), want: `persistentvolume "pv-c": spec.local.path: path "` + dir + `/none" does not exist`},
		"local file":          {source: localAt(file), want: file + " is not a directory"},
		"block device":        {source: localAt(disk), want: disk + " is a block device, which this node does not mount: mount it, and name the mount point"},
		"ephemeral":           {change: claimOf(true)},
		"not the pod's":       {change: claimOf(false), want: "PVC default/p-c was not created for pod default/p (pod is not owner)"},
		"ephemeral soon": {change: func(b bed) {
			claimOf(true)(b)
			b.o.claims = nil
		}, want: `persistentvolumeclaim "p-c" not found`},
	} {
		t.Run(name, func(t *testing.T) {
			v := New(t.TempDir(), Disks{})
			if c.source == (corev1.PersistentVolumeSource{}) {
				c.source = hostAt(dir, corev1.HostPathDirectory)
			}
			o, p := bind(c.source)
			if c.change != nil {
				c.change(bed{o, o.claims["c"], o.volumes["pv-c"], p})
			}
			err := v.Mount(t.Context(), p, o)
			if err == nil && c.want == "" {
				return
			}
			if err == nil || c.want == "" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if _, err := v.Mounts(Request{Pod: p, Container: &p.Spec.Containers[0]}); err == nil {
				t.Error("a volume that is not up was mounted")
			}
		})
	}
}

// claimOf makes the pod's volume an ephemeral one whose claim is the pod's, or somebody else's.
func claimOf(pods bool) func(b bed) {
	return func(b bed) {
		b.c.Name = "p-c"
		b.o.claims["p-c"] = b.c
		b.p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}
		if yes := true; pods {
			b.c.OwnerReferences = []metav1.OwnerReference{{Kind: "Pod", Name: b.p.Name, UID: b.p.UID, Controller: &yes}}
		}
	}
}

// Who wants a volume only to be read gets it so; claims are asked for once.
func TestClaimsMounts(t *testing.T) {
	v := newVolumes(t)
	folder, disk := t.TempDir(), t.TempDir()
	o, p := bind(hostAt(folder, corev1.HostPathUnset), hostAt(folder, corev1.HostPathUnset), localAt(disk), localAt(disk), localAt(disk))
	o.claims["d"].Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
	o.claims["f"].Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteMany}
	p.Spec.Volumes[4].PersistentVolumeClaim.ReadOnly = true
	o.volumes["pv-f"].Spec.MountOptions = []string{"noexec", "noatime"}
	o.volumes["pv-c"].Annotations = map[string]string{groupAnnotation: "1234"}
	c := &p.Spec.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "e", MountPath: "/ro", ReadOnly: true}, corev1.VolumeMount{Name: "e", MountPath: "/sub", SubPathExpr: "made/$(POD)"})
	up(t, v, p, o)
	ms, err := v.Mounts(Request{Pod: p, Container: c, Env: map[string]string{"POD": "p1"}})
	if err != nil {
		t.Fatal(err)
	}
	var readOnly []bool
	for _, m := range ms {
		readOnly = append(readOnly, m.Readonly)
	}
	if want := []bool{false, true, false, false, true, true, false}; !slices.Equal(readOnly, want) {
		t.Errorf("read-only: %v, want %v", readOnly, want)
	}
	if ms[0].HostPath != folder {
		t.Error("a hostPath volume is at", ms[0].HostPath)
	}
	if ms[2].HostPath != filepath.Join(v.PodDir("u1"), "volumes", "kubernetes.io~local-volume", "e") {
		t.Error("a local volume is at", ms[2].HostPath)
	}
	if err := os.WriteFile(filepath.Join(ms[2].HostPath, "f"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(disk, "f")); string(b) != "x" {
		t.Error("what was written is not in the folder:", err)
	}
	if err := os.WriteFile(filepath.Join(ms[4].HostPath, "g"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Error("a volume that is only read was written:", err)
	}
	if _, err := os.Stat(filepath.Join(disk, "made", "p1")); err != nil {
		t.Error(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(ms[3].HostPath, &st); err != nil || st.Flags&unix.ST_NOEXEC == 0 || st.Flags&unix.ST_NOATIME == 0 {
		t.Errorf("mount options were not applied: %x %v", st.Flags, err)
	}
	if got := v.Groups(p); !slices.Equal(got, []int64{1234}) {
		t.Error("groups of the volumes:", got)
	}
	asked := o.asked
	up(t, v, p, o)
	if o.asked != asked {
		t.Error("claims of volumes that are up were asked for again")
	}
	up(t, New(v.root, Disks{}), p, o) // as after a restart of the kubelet
	if below, err := mountsBelow(v.PodDir("u1")); err != nil || len(below) != 4 {
		t.Error("after a restart:", below, err)
	}
}

// What is in a volume stays when its pod goes, and another finds it.
func TestDownKeepsVolumes(t *testing.T) {
	v := newVolumes(t)
	folder, disk := t.TempDir(), t.TempDir()
	for _, dir := range []string{folder, disk} {
		if err := os.WriteFile(filepath.Join(dir, "precious"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o, p := bind(hostAt(folder, corev1.HostPathUnset), localAt(disk))
	p.Spec.Containers[0].VolumeMounts[1].SubPath = "precious"
	for _, uid := range []types.UID{"u1", "u2"} {
		p.UID = uid
		up(t, v, p, o)
		if _, err := v.Mounts(Request{Pod: p, Container: &p.Spec.Containers[0]}); err != nil {
			t.Fatal(err)
		}
		if got := tree(t, v, p, 1); got != "precious=x" {
			t.Error(got)
		}
		if err := v.Down(t.Context(), uid); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(v.PodDir(uid)); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if v.claimed(p, &p.Spec.Volumes[1]) != nil {
			t.Error("a volume that is down is still known")
		}
	}
	for _, dir := range []string{folder, disk} {
		if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
			t.Error(err)
		}
	}
}

// An fsGroup becomes the group of all that is in a local volume, and of nothing beside it; never of a hostPath volume.
func TestGroupOfVolumes(t *testing.T) {
	v := newVolumes(t)
	host, disk, beside := t.TempDir(), t.TempDir(), t.TempDir()
	for _, dir := range []string{host, disk} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700), os.WriteFile(filepath.Join(dir, "a", "b", "f"), nil, 0o400),
			os.WriteFile(filepath.Join(dir, "s"), nil, 0o700), os.Chmod(filepath.Join(dir, "s"), 0o700|fs.ModeSetuid), os.Symlink(beside, filepath.Join(dir, "link"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(disk, "a", "\xff"), nil, 0o600); err != nil { // a name need not be text
		t.Fatal(err)
	}
	o, p := bind(hostAt(host, corev1.HostPathUnset), localAt(disk))
	gid := func(n int64) { p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &n} }
	gid(2000)
	p.Spec.Containers[0].VolumeMounts[0].SubPath = "made"
	up(t, v, p, o)
	if _, err := v.Mounts(Request{Pod: p, Container: &p.Spec.Containers[0]}); err != nil {
		t.Fatal(err)
	}
	dirMode, all := fs.ModeDir|fs.ModeSetgid|0o770, map[string]fs.FileMode{}
	for name, mode := range map[string]fs.FileMode{"a": dirMode, "a/b": dirMode, "a/b/f": 0o660, "a/\xff": 0o660, "s": fs.ModeSetuid | 0o760, "link": fs.ModeSymlink | 0o777} {
		all[filepath.Join(disk, name)] = mode
	}
	all[disk] = fs.ModeDir | fs.ModeSetgid | 0o775
	for path, mode := range all {
		if got, group := modeOf(t, path); got != mode || group != 2000 {
			t.Errorf("%s: %v of group %d, want %v", path, got, group, mode)
		}
	}
	for _, path := range []string{host, filepath.Join(host, "a"), filepath.Join(host, "made"), beside} {
		if mode, group := modeOf(t, path); group != 0 || mode&fs.ModeSetgid != 0 {
			t.Errorf("%s: %v of group %d", path, mode, group)
		}
	}
	// Another pod does not take the files away from one that has them.
	first := *p
	p.UID = "u2"
	gid(3000)
	up(t, v, p, o)
	if _, group := modeOf(t, disk); group != 2000 {
		t.Error("taken away for", group)
	}
	if want := "AlreadyMountedVolume The requested fsGroup is 3000, but the volume pv-d has GID 2000. The volume may not be shareable."; !slices.Equal(o.warnings, []string{want}) {
		t.Error(o.warnings)
	}
	if err := errors.Join(v.Down(t.Context(), "u1"), v.Down(t.Context(), "u2")); err != nil {
		t.Fatal(err)
	}
	// A root that is the group's is enough where the pod says so.
	if err := os.WriteFile(filepath.Join(disk, "later"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	policy := corev1.FSGroupChangeOnRootMismatch
	for _, c := range []struct {
		pod, gid int64
		want     uint32
	}{{3, 2000, 0}, {4, 3000, 3000}} {
		first.UID, first.Spec.SecurityContext = types.UID(rune('0'+c.pod)), &corev1.PodSecurityContext{FSGroup: &c.gid, FSGroupChangePolicy: &policy}
		if err := os.Chown(filepath.Join(disk, "later"), 0, 0); err != nil {
			t.Fatal(err)
		}
		up(t, v, &first, o)
		if _, group := modeOf(t, filepath.Join(disk, "later")); group != c.want {
			t.Errorf("fsGroup %d: %d", c.gid, group)
		}
		if err := v.Down(t.Context(), first.UID); err != nil {
			t.Fatal(err)
		}
	}
	// What is only read is not changed; what is mounted in the folder is not in the volume.
	inner := filepath.Join(disk, "a", "b")
	if err := unix.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(inner, unix.MNT_DETACH)
	p.Spec.Volumes[1].PersistentVolumeClaim.ReadOnly = true
	gid(4000)
	up(t, v, p, o)
	if _, group := modeOf(t, disk); group != 3000 {
		t.Error("a volume that is only read has become the group's", group)
	}
	p.UID = "u5"
	p.Spec.Volumes[1].PersistentVolumeClaim.ReadOnly = false
	if err := v.Down(t.Context(), "u2"); err != nil {
		t.Fatal(err)
	}
	up(t, v, p, o)
	if _, group := modeOf(t, inner); group != 0 {
		t.Error("another file system has become the group's", group)
	}
}

func modeOf(t *testing.T, path string) (fs.FileMode, uint32) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return info.Mode(), st.Gid
}

// Files that cannot be changed do not hold the pod up, but its user is told. A walk ends with the kubelet.
func TestGroupOfWhatCannotBeChanged(t *testing.T) {
	v := newVolumes(t)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	if err := errors.Join(os.WriteFile(filepath.Join(disk, "f"), nil, 0o600), unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	o, p := bind(localAt(disk))
	gid := int64(2000)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &gid}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Mount(ctx, p, o); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	o.warnings = nil
	up(t, v, p, o)
	if want := "FailedFSGroup fsGroup 2000 was not given to all files of volume pv-c: lchownat f: read-only file system"; !slices.Equal(o.warnings, []string{want}) {
		t.Error(o.warnings)
	}
}
