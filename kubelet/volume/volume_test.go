package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/kubelet/field"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/linux"
)

// objects is a Source over maps.
type objects struct {
	maps    map[string]*corev1.ConfigMap
	secrets map[string]*corev1.Secret
	token   string
	renew   time.Time
	bundles []*certificatesv1.ClusterTrustBundle

	claims   map[string]*corev1.PersistentVolumeClaim
	volumes  map[string]*corev1.PersistentVolume
	node     *corev1.Node
	drivers  map[string]*storagev1.CSIDriver
	attached map[string]*storagev1.VolumeAttachment
	warnings []string
	asked    int // for claims
}

func (o *objects) ConfigMap(name string) (*corev1.ConfigMap, error) {
	if c := o.maps[name]; c != nil {
		return c, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (o *objects) Secret(name string) (*corev1.Secret, error) {
	if s := o.secrets[name]; s != nil {
		return s, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func (o *objects) Token(context.Context, *corev1.Pod, authenticationv1.TokenRequestSpec) (authenticationv1.TokenRequestStatus, time.Time, error) {
	return authenticationv1.TokenRequestStatus{Token: o.token}, o.renew, nil
}

func (o *objects) Bundle(name string) (*certificatesv1.ClusterTrustBundle, error) {
	for _, b := range o.bundles {
		if b.Name == name {
			return b, nil
		}
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "clustertrustbundles"}, name)
}

func (o *objects) Bundles(signer string, selector labels.Selector) (out []*certificatesv1.ClusterTrustBundle, err error) {
	for _, b := range o.bundles {
		if b.Spec.SignerName == signer && selector.Matches(labels.Set(b.Labels)) {
			out = append(out, b)
		}
	}
	return out, nil
}

func (o *objects) Certificate(_ context.Context, _ *corev1.Pod, volume string, index int) (*Certificate, time.Time, error) {
	return &Certificate{Key: []byte(volume + " key "), Chain: []byte(strconv.Itoa(index) + " chain")}, o.renew, nil
}

// newVolumes returns Volumes whose mounts are gone when the test ends.
func newVolumes(t *testing.T) *Volumes {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := t.TempDir()
	v := New(root, Disks{})
	t.Cleanup(func() {
		uids, err := v.Pods()
		if err != nil {
			t.Error(err)
		}
		for _, uid := range uids {
			if err := v.Down(t.Context(), uid); err != nil {
				t.Error(err)
			}
		}
		if left, err := mountsBelow(root); err != nil || len(left) > 0 {
			t.Error("mounts left:", left, err)
		}
	})
	return v
}

func podWith(sources ...corev1.VolumeSource) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "u1", Labels: map[string]string{"app": "x"}}}
	for i, s := range sources {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: string(rune('a' + i)), VolumeSource: s})
	}
	p.Spec.Containers = []corev1.Container{{Name: "c"}}
	return p
}

func up(t *testing.T, v *Volumes, p *corev1.Pod, o *objects) time.Time {
	t.Helper()
	again, err := v.Up(t.Context(), p, o, field.Runtime{NodeName: "n"})
	if err = errors.Join(err, v.Mount(t.Context(), p, o)); err != nil {
		t.Fatal(err)
	}
	return again
}

// tree lists the files that a user sees in a volume, "name=content".
func tree(t *testing.T, v *Volumes, p *corev1.Pod, volume int) string {
	t.Helper()
	dir, err := v.path(p, &p.Spec.Volumes[volume])
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	var walk func(prefix string)
	walk = func(prefix string) {
		entries, err := os.ReadDir(filepath.Join(dir, prefix))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := filepath.Join(prefix, e.Name())
			if strings.HasPrefix(e.Name(), "..") {
				continue
			}
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				walk(name)
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, name+"="+string(b))
		}
	}
	walk("")
	slices.Sort(out)
	return strings.Join(out, " ")
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
}

func ref(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }

func TestFilesOfAllSources(t *testing.T) {
	v := newVolumes(t)
	yes := true
	o := &objects{token: "jwt", renew: time.Unix(5000, 0),
		maps:    map[string]*corev1.ConfigMap{"m": configMap("m", map[string]string{"k1": "v1", "k2": "v2"})},
		secrets: map[string]*corev1.Secret{"s": {Data: map[string][]byte{"pw": []byte("x")}}}}
	p := podWith(
		corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m")}},
		corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}},
		corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m"), Items: []corev1.KeyToPath{{Key: "k2", Path: "deep/er/file"}}}},
		corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none", Optional: &yes}},
		corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
		corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: ref("m"), Items: []corev1.KeyToPath{{Key: "k1", Path: "ca.crt"}}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}}}}}}}},
	)
	again := up(t, v, p, o)
	if !again.Equal(o.renew) {
		t.Error("the token is renewed at", again)
	}
	for i, want := range []string{"k1=v1 k2=v2", "pw=x", "deep/er/file=v2", "", `labels=app="x"`, "ca.crt=v1 namespace=default token=jwt"} {
		if got := tree(t, v, p, i); got != want {
			t.Errorf("volume %d: %q, want %q", i, got, want)
		}
	}
	if mounted, err := linux.Mounted(filepath.Join(v.PodDir("u1"), "volumes", "kubernetes.io~secret", "b")); !mounted {
		t.Error("a secret lies on disk", err)
	}
}

// A reader sees all old or all new files, never a mixture, and never none. Only one who stands between the link and its
// folder while that folder goes has to look again.
func TestUpdateIsAtomic(t *testing.T) {
	v := newVolumes(t)
	o := &objects{maps: map[string]*corev1.ConfigMap{"m": configMap("m", map[string]string{"a": "0", "b": "0"})}}
	p := podWith(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m")}})
	up(t, v, p, o)
	dir, err := v.path(p, &p.Spec.Volumes[0])
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := os.Readlink(filepath.Join(dir, dataLink)); err != nil {
				t.Error(err)
				return
			}
			data, err := os.Open(filepath.Join(dir, dataLink))
			if errors.Is(err, fs.ErrNotExist) {
				continue // replaced while the link was being followed
			}
			if err != nil {
				t.Error(err)
				return
			}
			a, aerr := readAt(data, "a")
			b, berr := readAt(data, "b")
			data.Close()
			if aerr == nil && berr == nil && a != b {
				t.Errorf("a is %s while b is %s", a, b)
				return
			}
		}
	})
	for i := range 200 {
		n := strings.Repeat("x", i)
		o.maps["m"] = configMap("m", map[string]string{"a": n, "b": n})
		up(t, v, p, o)
	}
	close(stop)
	wg.Wait()
	o.maps["m"] = configMap("m", map[string]string{"c": "only"})
	up(t, v, p, o)
	if got := tree(t, v, p, 0); got != "c=only" {
		t.Error(got)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 { // the version, ..data, c
		t.Error("left-overs:", entries, err)
	}
	before, _ := os.Readlink(filepath.Join(dir, dataLink))
	up(t, v, p, o)
	if after, _ := os.Readlink(filepath.Join(dir, dataLink)); after != before {
		t.Error("unchanged files were written anew")
	}
}

func readAt(dir *os.File, name string) (string, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b := make([]byte, 1000)
	n, err := f.Read(b)
	if n > 0 || err == nil {
		return string(b[:n]), nil
	}
	return "", nil
}

func TestHostilePaths(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", "/etc/passwd", "../x", "a/../../x", "..data", "..2026/x", "a//b", "a/"} {
		if _, err := writeFiles(dir, map[string]File{name: {}}, nil); err == nil {
			t.Errorf("path %q was taken", name)
		}
	}
}

func TestModesAndOwners(t *testing.T) {
	v := newVolumes(t)
	group, user, mode := int64(2000), int64(1000), int32(0o400)
	o := &objects{maps: map[string]*corev1.ConfigMap{"m": configMap("m", map[string]string{"k": "v"})}, token: "jwt", renew: time.Unix(1, 0)}
	p := podWith(
		corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m"), DefaultMode: &mode}},
		corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}},
		corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}},
	)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group, RunAsUser: &user}
	up(t, v, p, o)
	for i, c := range []struct {
		file string
		mode fs.FileMode
		uid  uint32
	}{{"k", 0o440, 0}, {"", 0o777 | fs.ModeSetgid, 0}, {"", 0o777 | fs.ModeSetgid, 0}, {"token", 0o640, 1000}} {
		dir, err := v.path(p, &p.Spec.Volumes[i])
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, c.file))
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, c.file), &st); err != nil {
			t.Fatal(err)
		}
		if got := info.Mode() &^ fs.ModeDir; got != c.mode || st.Gid != 2000 || st.Uid != c.uid {
			t.Errorf("volume %d: %v %d:%d, want %v %d:2000", i, got, st.Uid, st.Gid, c.mode, c.uid)
		}
	}
}

func TestEmptyDirs(t *testing.T) {
	v := newVolumes(t)
	size := resource.MustParse("1Mi")
	p := podWith(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}})
	up(t, v, p, nil)
	disk, _ := v.path(p, &p.Spec.Volumes[0])
	memory, _ := v.path(p, &p.Spec.Volumes[1])
	if err := os.WriteFile(filepath.Join(disk, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(memory, "big"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Error("beyond the size limit:", err)
	}
	up(t, v, p, nil) // as after a restart of the kubelet
	if _, err := os.Stat(filepath.Join(disk, "kept")); err != nil {
		t.Error(err)
	}
	if _, err := v.Up(t.Context(), podWith(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "HugePages"}}), nil, field.Runtime{}); err == nil {
		t.Error("a medium that is not supported was taken")
	}
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind corev1.HostPathType
		path string
		ok   bool
	}{
		{corev1.HostPathUnset, dir + "/none", true},
		{corev1.HostPathDirectory, dir, true}, {corev1.HostPathDirectory, file, false}, {corev1.HostPathDirectory, dir + "/none", false},
		{corev1.HostPathDirectoryOrCreate, dir + "/made/deep", true}, {corev1.HostPathDirectoryOrCreate, file, false},
		{corev1.HostPathFile, file, true}, {corev1.HostPathFile, dir, false},
		{corev1.HostPathFileOrCreate, dir + "/made/file", true}, {corev1.HostPathFileOrCreate, dir + "/absent/file", false},
		{corev1.HostPathCharDev, "/dev/null", true}, {corev1.HostPathBlockDev, "/dev/null", false}, {corev1.HostPathSocket, file, false},
		{"Other", dir, false},
	} {
		if err := hostPath(&corev1.HostPathVolumeSource{Path: c.path, Type: &c.kind}); (err == nil) != c.ok {
			t.Errorf("%s %s: %v", c.kind, c.path, err)
		}
	}
}

func TestOtherTypesAreRefusedByName(t *testing.T) {
	v := New(t.TempDir(), Disks{})
	_, err := v.Up(t.Context(), podWith(corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}, corev1.VolumeSource{RBD: &corev1.RBDVolumeSource{}}), nil, field.Runtime{})
	if err == nil || !strings.Contains(err.Error(), "nfs volumes are not supported") || !strings.Contains(err.Error(), "rbd volumes are not supported") {
		t.Error(err)
	}
	var one *Error
	if !errors.As(err, &one) {
		t.Error("no volume is named")
	}
}

func TestMounts(t *testing.T) {
	v := newVolumes(t)
	o := &objects{maps: map[string]*corev1.ConfigMap{"m": configMap("m", map[string]string{"k": "v"})}}
	p := podWith(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m")}})
	up(t, v, p, o)
	c := &p.Spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: "a", MountPath: "/data"},
		{Name: "a", MountPath: "/sub", SubPathExpr: "logs/$(POD)"},
		{Name: "b", MountPath: "/etc/k", SubPath: "k"},
	}
	r := Request{Pod: p, Container: c, Env: map[string]string{"POD": "p1"}}
	for range 2 { // a second container attempt mounts anew
		ms, err := v.Mounts(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(ms[1].HostPath, "f"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(ms[0].HostPath, "logs/p1/f")); err != nil || string(b) != "x" {
			t.Error(string(b), err)
		}
		if b, err := os.ReadFile(ms[2].HostPath); err != nil || string(b) != "v" || !ms[2].Readonly {
			t.Error(string(b), err, ms[2])
		}
	}
	for _, bad := range []corev1.VolumeMount{
		{Name: "a", MountPath: "/x", SubPath: "../../etc"}, {Name: "a", MountPath: "/x", SubPath: "/etc"},
		{Name: "a", MountPath: "/x", SubPathExpr: "$(NONE)"}, {Name: "none", MountPath: "/x"},
	} {
		c.VolumeMounts = []corev1.VolumeMount{bad}
		var mistake spec.ConfigError
		if _, err := v.Mounts(r); !errors.As(err, &mistake) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// On a node with SELinux the runtime is asked to label what the kubelet made for the pod, never the host's own folders.
func TestMountsAreRelabelled(t *testing.T) {
	v := newVolumes(t)
	o := &objects{maps: map[string]*corev1.ConfigMap{"m": configMap("m", map[string]string{"k": "v"})}}
	p := podWith(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref("m")}},
		corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: t.TempDir()}})
	up(t, v, p, o)
	claim := corev1.Volume{Name: "d", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}
	p.Spec.Volumes = append(p.Spec.Volumes, claim)
	c := &p.Spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{{Name: "a", MountPath: "/a"}, {Name: "b", MountPath: "/b"}, {Name: "c", MountPath: "/c"}, {Name: "d", MountPath: "/d"}}
	for _, tt := range []struct {
		relabel bool
		claimed claimed
		want    []bool
	}{
		{true, claimed{path: "/x", local: true}, []bool{true, true, false, true}},
		{true, claimed{path: "/x", disk: &disk{}}, []bool{true, true, false, true}},
		{true, claimed{path: "/x", local: true, readOnly: true}, []bool{true, true, false, false}},
		{true, claimed{path: "/x"}, []bool{true, true, false, false}}, // the host's
		{false, claimed{path: "/x", local: true}, make([]bool, 4)},
	} {
		v.claims[p.UID] = map[string]*claimed{"d": &tt.claimed}
		ms, err := v.Mounts(Request{Pod: p, Container: c, Relabel: tt.relabel})
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range ms {
			if m.SelinuxRelabel != tt.want[i] {
				t.Errorf("%+v: mount %s: %v", tt, m.ContainerPath, m.SelinuxRelabel)
			}
		}
	}
	v.claims = map[types.UID]map[string]*claimed{}
}

// CVE-2017-1002101 and CVE-2021-25741: a link in a volume, also one that is put there while the kubelet looks, never
// leads a subPath out of the volume.
func TestSubPathStaysInside(t *testing.T) {
	v := newVolumes(t)
	secret := t.TempDir()
	if err := os.WriteFile(filepath.Join(secret, "host"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := podWith(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	up(t, v, p, nil)
	dir, _ := v.path(p, &p.Spec.Volumes[0])
	c := &p.Spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{{Name: "a", MountPath: "/x", SubPath: "way/in"}}
	if err := os.MkdirAll(filepath.Join(dir, "real", "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // the container swaps a folder for a link, again and again
		way := filepath.Join(dir, "way")
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			os.Remove(way + ".new")
			to := "real"
			if i%2 == 0 {
				to = filepath.Dir(secret)
			}
			os.Symlink(to, way+".new")
			os.Rename(way+".new", way)
		}
	})
	c.VolumeMounts[0].SubPath = "way/" + filepath.Base(secret)
	for range 300 {
		ms, err := v.Mounts(Request{Pod: p, Container: c})
		if err != nil {
			continue // refused is right, too
		}
		if _, err := os.Stat(filepath.Join(ms[0].HostPath, "host")); err == nil {
			t.Fatal("the host's file is seen through the volume")
		}
	}
	close(stop)
	wg.Wait()
}

// Down unmounts first and never follows a mount or a link.
func TestDownKeepsWhatIsNotItsOwn(t *testing.T) {
	v := newVolumes(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := podWith(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: outside}}, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	up(t, v, p, nil)
	c := &p.Spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{{Name: "a", MountPath: "/x", SubPath: "."}, {Name: "a", MountPath: "/y", SubPath: "precious"}}
	if _, err := v.Mounts(Request{Pod: p, Container: c}); err != nil {
		t.Fatal(err)
	}
	empty, _ := v.path(p, &p.Spec.Volumes[1])
	if err := os.Symlink(outside, filepath.Join(empty, "link")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing
		if err := v.Down(t.Context(), "u1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "precious")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(v.PodDir("u1")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, uid := range []string{"", "..", "a/b"} {
		if err := v.Down(t.Context(), types.UID(uid)); err == nil {
			t.Errorf("Down(%q) did something", uid)
		}
	}
}
