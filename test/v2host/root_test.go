package v2host_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// places of the machine's root file system.
const (
	binDir    = "/v2/bin"
	testsDir  = "/v2/tests"
	sourceDir = "/v2/src"
)

const (
	head = `#!/bin/sh
export PATH=/v2/bin:/bin:/usr/bin:/usr/sbin HOME=/root YARE_TEST_INIT=/v2/bin/yare-init
`
	// speak has all output go out of the machine, by the second device's first port. Its file is there a moment before it can be
	// opened.
	speak = `/bin/busybox modprobe virtio_console
until (exec >/dev/vport1p1) 2>/dev/null; do sleep 0.05; done
exec >/dev/vport1p1 2>&1 </dev/null
echo "the machine is up after $(cut -d ' ' -f 1 /proc/uptime) s"
`
)

// rc is the machine's only program beside what it tests. It has what a host is expected to have: a cgroup v2 file
// system and nothing of v1, a network with a default route, swap.
const rc = head + `mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs run /run
mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
mount --make-rshared /
` + speak + `hostname v2host
ip link set lo up
modprobe dummy numdummies=0
ip link add uplink type dummy
ip addr add 192.0.2.10/24 dev uplink
ip link set uplink up
ip route add default via 192.0.2.1
dd if=/dev/zero of=/swap bs=1M count=32 2>/dev/null && mkswap /swap >/dev/null && swapon /swap
`

// enforce gives the machine's kernel its SELinux policy. It is taken in one write.
const enforce = `mount -t selinuxfs selinuxfs /sys/fs/selinux
dd if=/v2/policy of=/sys/fs/selinux/load bs=1M 2>/dev/null
echo 1 >/sys/fs/selinux/enforce
`

// compilePolicy makes the policy, and the files by which a host says what of it is for containers.
func compilePolicy(t *testing.T, compiler, root string) {
	t.Helper()
	text, err := os.ReadFile("testdata/selinux.conf")
	must(t, err)
	var categories strings.Builder
	for i := range 1024 {
		fmt.Fprintf(&categories, "category c%d;\n", i)
	}
	source := filepath.Join(t.TempDir(), "policy.conf")
	must(t, os.WriteFile(source, bytes.Replace(text, []byte("# CATEGORIES"), []byte(categories.String()+"#"), 1), 0o600))
	output(t, filepath.Join(compiler, "usr/bin/checkpolicy"), "-M", "-U", "allow", "-c", "30", "-o", filepath.Join(root, "v2/policy"), source)
	must(t, os.MkdirAll(filepath.Join(root, "etc/selinux/guest/contexts"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "etc/selinux/config"), []byte("SELINUX=enforcing\nSELINUXTYPE=guest\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/selinux/guest/contexts/lxc_contexts"),
		[]byte("process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n"), 0o644))
}

// newRoot makes the root file system: busybox, nft, ps, the kernel's modules, the program, the tests.
func newRoot(t *testing.T, kernel string) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "run", "var", "root", "lib", "usr/sbin", binDir, testsDir, sourceDir} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(t, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	copyTo(t, root, "/bin/busybox")
	for applet := range strings.FieldsSeq(output(t, "/bin/busybox", "--list")) {
		if applet != "busybox" {
			must(t, os.Symlink("/bin/busybox", filepath.Join(root, "bin", applet)))
		}
	}
	for _, name := range []string{"init", "modprobe"} {
		must(t, os.Symlink("/bin/busybox", filepath.Join(root, "sbin", name)))
	}
	copyLinked(t, root, "nft")
	must(t, os.Remove(filepath.Join(root, "bin/ps"))) // busybox' does not take processes
	copyLinked(t, root, "ps")
	output(t, "cp", "-rT", filepath.Join(kernel, "lib/modules"), filepath.Join(root, "lib/modules"))
	for name, text := range map[string]string{
		"etc/inittab": "::sysinit:/etc/rc\n", "etc/hosts": "127.0.0.1 localhost\n", "etc/resolv.conf": "nameserver 127.0.0.1\n",
		"etc/protocols": "tcp 6 TCP\nudp 17 UDP\n", "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n",
	} {
		must(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
	}
	return root
}

// newSystemdRoot makes the root file system of a machine that systemd runs, from Debian's own.
func newSystemdRoot(t *testing.T, debian, kernel string) string {
	t.Helper()
	root := t.TempDir()
	output(t, "cp", "-aT", debian, root)
	for _, dir := range []string{binDir, testsDir, sourceDir} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	output(t, "cp", "/bin/busybox", filepath.Join(root, "usr/bin/busybox"))
	output(t, "cp", "-rT", filepath.Join(kernel, "lib/modules"), filepath.Join(root, "usr/lib/modules"))
	for name, text := range map[string]string{
		"etc/machine-id":                    "", // is made
		"etc/systemd/system/v2host.service": "[Unit]\nAfter=basic.target\nRequires=basic.target\n[Service]\nType=oneshot\nExecStart=/etc/rc\n",
		"etc/systemd/system/default.target": "[Unit]\nRequires=v2host.service\n",
	} {
		must(t, os.RemoveAll(filepath.Join(root, name)))
		must(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
	}
	return root
}

// copyTo copies a file of this host to the same place below root.
func copyTo(t *testing.T, root, path string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755))
	output(t, "cp", "-L", path, filepath.Join(root, path))
}

// copyLinked copies a program with the libraries that it is linked to.
func copyLinked(t *testing.T, root, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	must(t, err)
	copyTo(t, root, path)
	for word := range strings.FieldsSeq(output(t, "ldd", path)) {
		if filepath.IsAbs(word) {
			copyTo(t, root, word)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// output runs a program of this host, which must succeed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, stderr.String()))
	}
	return string(out)
}
