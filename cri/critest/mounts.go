package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func mountCases() []Case {
	return []Case{
		{"a folder of the host is there, and written", 0, mountFolder},
		{"a read-only folder cannot be written", 0, mountReadOnly},
		{"a file of the host is there", 0, mountFile},
		{"a link on the host is followed", 0, mountLink},
		{"a folder that the host has not is made", 0, mountMissing},
		{"the place in the container is made", 0, mountPlace},
		{"the order does not matter", 0, mountOrder},
		{"a mount takes the place of /etc/hosts", 0, mountHosts},
		{"a mount takes the place of /dev/shm", 0, mountShm},
		{"/dev/shm has 64 MiB", 0, mountShmSize},
		{"private: the host's later mounts are not seen", 0, mountPrivate},
		{"from the host: its later mounts are seen", 0, mountFromHost},
		{"from the host: the container's mounts are not seen outside", 0, mountNotToHost},
		{"in both ways: the container's mounts are seen outside", 0, mountBothWays},
		{"what is mounted below a folder is there", 0, mountBelow},
		{"a read-only folder leaves what is mounted below", 0, mountReadOnlyBelow},
		{"a recursive read-only folder does not", 30, mountRecursive},
		{"recursive read-only needs read-only", 30, mountRecursiveWritable},
		{"recursive read-only needs private propagation", 30, mountRecursiveShared},
		{"an image is there, and cannot be written", 31, mountImage},
		{"an image may be named by its ID", 31, mountImageByID},
		{"a part of an image is there", 33, mountImagePart},
		{"a part that the image has not is refused", 33, mountImageNoPart},
		{"an image that is not there is refused", 31, mountNoImage},
		{"options of the mount hold", 37, mountWithOptions},
		{"two containers write to one folder", 0, mountTwice},
	}
}

func at(place, host string, change ...func(*runtimeapi.Mount)) *runtimeapi.Mount {
	m := &runtimeapi.Mount{ContainerPath: place, HostPath: host}
	for _, c := range change {
		c(m)
	}
	return m
}

func readOnly(m *runtimeapi.Mount)  { m.Readonly = true }
func recursive(m *runtimeapi.Mount) { m.RecursiveReadOnly = true }
func fromHost(m *runtimeapi.Mount) {
	m.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
}
func bothWays(m *runtimeapi.Mount) {
	m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
}
func (t *T) box(id string) *mountBox { return &mountBox{t, id} }

// mountBox is a privileged container that mounts for the host.
type mountBox struct {
	t  *T
	id string
}

func (b *mountBox) do(script string) {
	b.t.Helper()
	if out, code := b.t.exec(b.id, "sh", "-c", script+" 2>&1"); code != 0 {
		b.t.Fatalf("%s: %d, %s", script, code, out)
	}
}

// mounter mounts at /data of its own what is then mounted in the folder on the host.
func (t *T) mounter(folder string) *mountBox {
	t.Helper()
	c := privileged(t.config(forever()...))
	c.Mounts = []*runtimeapi.Mount{at("/data", folder, bothWays)}
	b := t.box(t.run(t.privilegedPod(), c))
	t.Cleanup(func() {
		// What stays mounted on the host would outlive the container.
		_, err := t.Runtime.ExecSync(t.root.Context(), &runtimeapi.ExecSyncRequest{ContainerId: b.id, Cmd: []string{"sh", "-c", "while umount -l /data/* 2>/dev/null; do :; done"}})
		if err != nil {
			t.TB.Errorf("unmount: %v", err)
		}
	})
	return b
}

func (t *T) mounts(want, script string, mounts ...*runtimeapi.Mount) {
	t.Helper()
	c := t.script(script)
	c.Mounts = mounts
	t.prints(want, t.any(), c)
}

func mountFolder(t *T) {
	f := t.file("in", "from outside\n")
	t.mounts("from outside\n", "cat /data/in; echo from inside > /data/out", at("/data", filepath.Dir(f)))
	if text, err := os.ReadFile(filepath.Dir(f) + "/out"); err != nil || string(text) != "from inside\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func mountReadOnly(t *T) {
	t.mounts("refused\n", "touch /data/new 2>/dev/null || echo refused", at("/data", t.folder(), readOnly))
}

func mountFile(t *T) {
	t.mounts("text\n", "cat /some/where/file", at("/some/where/file", t.file("file", "text\n")))
}

func mountLink(t *T) {
	f := t.file("file", "text\n")
	link := t.folder() + "/link"
	if err := os.Symlink(filepath.Dir(f), link); err != nil {
		t.Fatal(err)
	}
	t.mounts("text\n", "cat /data/file", at("/data", link))
}

// CRI's text would have it refused. Pods with hostPath volumes of no type expect it, every server does it, and cri-tools'
// own suite asks for it.
func mountMissing(t *T) {
	dir := t.folder() + "/new/folder"
	t.mounts("", "echo text > /data/file", at("/data", dir))
	if text, err := os.ReadFile(dir + "/file"); err != nil || string(text) != "text\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func mountPlace(t *T) {
	t.mounts("text\n", "cat /a/new/place/file", at("/a/new/place", filepath.Dir(t.file("file", "text\n"))))
}

func mountOrder(t *T) {
	t.mounts("inner\nouter\n", "cat /data/inner/file /data/file",
		at("/data/inner", filepath.Dir(t.file("file", "inner\n"))), at("/data", filepath.Dir(t.file("file", "outer\n"))))
}

func mountHosts(t *T) {
	t.mounts("192.0.2.1 me\n", "cat /etc/hosts", at("/etc/hosts", t.file("hosts", "192.0.2.1 me\n")))
}

func mountShm(t *T) {
	t.mounts("text\n", "cat /dev/shm/file", at("/dev/shm", filepath.Dir(t.file("file", "text\n"))))
}

func mountShmSize(t *T) { t.mounts("65536\n", "df -k /dev/shm | awk 'NR == 2 {print $2}'") }

// watcher is a container with the folder, that is there before the host mounts.
func (t *T) watcher(folder string, change ...func(*runtimeapi.Mount)) string {
	t.Helper()
	return t.sleeper(t.any(), func(c *containerConfig) { c.Mounts = []*runtimeapi.Mount{at("/data", folder, change...)} })
}

func mountPrivate(t *T) {
	dir := t.folder()
	watcher := t.watcher(dir)
	t.mounter(dir).do("mkdir /data/m && mount -t tmpfs tmpfs /data/m && touch /data/m/file")
	t.wantExec(watcher, "", "ls", "/data/m")
}

func mountFromHost(t *T) {
	dir := t.folder()
	watcher := t.watcher(dir, fromHost)
	t.mounter(dir).do("mkdir /data/m && mount -t tmpfs tmpfs /data/m && touch /data/m/file")
	t.wantExec(watcher, "file\n", "ls", "/data/m")
}

func mountNotToHost(t *T) {
	dir := t.folder()
	watcher := t.watcher(dir, fromHost)
	c := privileged(t.config(forever()...))
	c.Mounts = []*runtimeapi.Mount{at("/data", dir, fromHost)}
	t.box(t.run(t.privilegedPod(), c)).do("mkdir /data/m && mount -t tmpfs tmpfs /data/m && touch /data/m/file")
	t.wantExec(watcher, "", "ls", "/data/m")
}

func mountBothWays(t *T) {
	dir := t.folder()
	b := t.mounter(dir)
	b.do("mkdir /data/m && mount -t tmpfs tmpfs /data/m && touch /data/m/file")
	t.mounts("file\n", "ls /data/m", at("/data", dir))
}

func mountBelow(t *T) {
	dir := t.folder()
	t.mounter(dir).do("mkdir /data/m && mount -t tmpfs tmpfs /data/m && touch /data/m/file")
	t.mounts("file\n", "ls /data/m", at("/data", dir))
}

func (t *T) below(want string, change ...func(*runtimeapi.Mount)) {
	t.Helper()
	dir := t.folder()
	t.mounter(dir).do("mkdir /data/m && mount -t tmpfs tmpfs /data/m")
	t.mounts(want, "touch /data/new 2>/dev/null || echo refused; touch /data/m/new 2>/dev/null || echo refused below", at("/data", dir, change...))
}

func mountReadOnlyBelow(t *T) { t.below("refused\n", readOnly) }
func mountRecursive(t *T)     { t.below("refused\nrefused below\n", readOnly, recursive) }

func (t *T) mountRefused(what string, m *runtimeapi.Mount) {
	t.Helper()
	c := t.config("true")
	c.Mounts = []*runtimeapi.Mount{m}
	t.refused(what, t.runs(t.any(), c))
}

func mountRecursiveWritable(t *T) {
	t.mountRefused("recursive read-only alone", at("/data", t.folder(), recursive))
}

func mountRecursiveShared(t *T) {
	t.mountRefused("recursive read-only with propagation", at("/data", t.folder(), readOnly, recursive, fromHost))
}

// ofImage is an image's mount, as the kubelet asks for it after it has pulled.
func (t *T) ofImage(ref, part string) *runtimeapi.Mount {
	t.Helper()
	return &runtimeapi.Mount{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: ref}, ImageSubPath: part, Readonly: true}
}

func mountImage(t *T) {
	t.pull(t.images.data)
	t.mounts("data\nrefused\n", "cat /data/dir/file; touch /data/new 2>/dev/null || echo refused", t.ofImage(t.images.data, ""))
}

func mountImageByID(t *T) {
	t.mounts("data\n", "cat /data/dir/file", t.ofImage(t.pull(t.images.data), ""))
}

func mountImagePart(t *T) {
	t.mounts("data\n", "cat /data/file", t.ofImage(t.pull(t.images.data), "dir"))
}

func mountImageNoPart(t *T) {
	t.mountRefused("a part that is not there", t.ofImage(t.pull(t.images.data), "no/such"))
}

func mountNoImage(t *T) {
	t.mountRefused("an image that is not there", t.ofImage(t.images.open+"/never-pulled:2", ""))
}

func mountWithOptions(t *T) {
	dir := t.folder()
	for options, want := range map[string]string{"": "ran", "noexec": "refused"} {
		m := at("/data", dir)
		if options != "" {
			m.MountOptions = []string{options}
		}
		t.mounts(want+"\n", "ls /bin/busybox >/dev/null; dd if=/bin/busybox of=/data/busybox 2>/dev/null; chmod 755 /data/busybox; /data/busybox echo ran 2>/dev/null || echo refused", m)
	}
}

func mountTwice(t *T) {
	dir, pod := t.folder(), t.any()
	for i := range 2 {
		c := t.script(fmt.Sprintf("echo %d >> /data/file", i))
		c.Mounts = []*runtimeapi.Mount{at("/data", dir)}
		t.prints("", pod, c)
	}
	if text, err := os.ReadFile(dir + "/file"); err != nil || string(text) != "0\n1\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func deviceCases() []Case {
	return []Case{
		{"a device of the host is there", 0, deviceThere},
		{"a device may be read alone", 0, deviceReadOnly},
		{"a device may have another name", 0, deviceNamed},
		{"a device that the host has not is refused", 0, deviceMissing},
		{"a device that is not given cannot be made use of", 0, deviceNotGiven},
		{"a device that no CDI file knows is refused", 28, deviceCDI},
		{"the usual devices are there", 0, deviceUsual},
	}
}

// device is the kernel's log, which anybody may open to write who may use the device.
func (t *T) device(want, script string, permissions, place string) {
	t.Helper()
	c := t.script(script)
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/kmsg", ContainerPath: place, Permissions: permissions}}
	t.prints(want, t.any(), c)
}

func deviceThere(t *T) {
	t.device("opened\n", "(: > /dev/kmsg) && echo opened", "rwm", "/dev/kmsg")
}

func deviceReadOnly(t *T) {
	t.device("refused\n", "(: > /dev/kmsg) 2>/dev/null || echo refused", "r", "/dev/kmsg")
}

func deviceNamed(t *T) {
	t.device("there\n", "test -c /dev/other/name && echo there", "rwm", "/dev/other/name")
}

func deviceMissing(t *T) {
	c := t.config("true")
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "rwm"}}
	t.refused("a device that is not there", t.runs(t.any(), c))
}

func deviceNotGiven(t *T) {
	t.prints("refused\n", t.any(), t.script("mknod /tmp/kmsg c 1 11 2>/dev/null; (: > /tmp/kmsg) 2>/dev/null || echo refused"))
}

func deviceCDI(t *T) {
	c := t.config("true")
	c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "example.com/none=device"}}
	t.refused("a CDI device that is not there", t.runs(t.any(), c))
}

func deviceUsual(t *T) {
	var script []string
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		script = append(script, "test -c /dev/"+d+" || echo no "+d)
	}
	script = append(script, "for l in fd stdin stdout stderr ptmx; do test -L /dev/$l || echo no $l; done", "test -d /dev/pts -a -d /dev/shm -a -d /dev/mqueue && echo done")
	t.prints("done\n", t.any(), t.script(strings.Join(script, "\n")))
}
