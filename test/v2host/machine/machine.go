// Package machine boots a Linux machine of its own under qemu, from a kernel and a folder that becomes its root file
// system. Where KVM does not work, qemu computes every instruction: slow, but the same.
//
//	the machine's /init (in the initramfs)   loads the disk's driver, mounts the disk, makes it the root
//	             /sbin/init                  the folder's own
//	             /dev/vport1p1               what is written there comes out of Run
//	             ttyS0                       what the kernel says goes to a file, for those who look for a cause
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Machine is one to be booted.
type Machine struct {
	// Kernel is a folder with a Debian kernel package unpacked in it: boot/vmlinuz-<release>, lib/modules/<release>.
	Kernel string
	// Root becomes the root file system.
	Root string
	// Scratch is a folder for the disk's image and the console's text.
	Scratch string
	// Memory and Disk are in MiB.
	Memory, Disk int
	// Parameters are more of the kernel's.
	Parameters []string
}

// firstSign is how long a machine may take until it first writes to its port.
const firstSign = 30 * time.Second

// diskDrivers are the modules that the initramfs loads, in this order.
var diskDrivers = []string{"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"}

// Release is the kernel's.
func (m *Machine) Release() (string, error) {
	found, err := filepath.Glob(filepath.Join(m.Kernel, "boot", "vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%d kernels in %s, want one", len(found), m.Kernel)
	}
	return strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-"), nil
}

// Run boots the machine, copies to out what it writes to its port, and returns when it has ended. The machine has
// ended when Run returns, whatever happens.
func (m *Machine) Run(ctx context.Context, out io.Writer) error {
	release, err := m.Release()
	if err != nil {
		return err
	}
	if err := m.disk(ctx); err != nil {
		return err
	}
	if err := m.initramfs(release); err != nil {
		return err
	}
	var errs []error
	for _, how := range accelerators() {
		err := m.boot(ctx, release, how, out)
		if !errors.Is(err, errSilent) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Console returns the end of what the kernel said.
func (m *Machine) Console() string {
	b, _ := os.ReadFile(filepath.Join(m.Scratch, "console"))
	return string(b[max(0, len(b)-8000):])
}

// accelerators are qemu's flags in order of preference.
func accelerators() (list [][]string) {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		f.Close()
		list = append(list, []string{"-accel", "kvm", "-cpu", "host"})
	}
	return append(list, []string{"-accel", "tcg,thread=multi", "-cpu", "max"})
}

// errSilent says that qemu or the machine died before it wrote anything: nested virtualisation that is there, but
// does not work, looks so.
var errSilent = errors.New("the machine gave no sign of life")

func (m *Machine) boot(ctx context.Context, release string, how []string, out io.Writer) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	args := append([]string{"-M", "q35", "-m", strconv.Itoa(m.Memory), "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", filepath.Join(m.Kernel, "boot", "vmlinuz-"+release), "-initrd", filepath.Join(m.Scratch, "initramfs"),
		"-append", strings.Join(append([]string{"console=ttyS0", "panic=-1", "reboot=t"}, m.Parameters...), " "),
		"-serial", "file:" + filepath.Join(m.Scratch, "console"),
		"-drive", "id=root,if=none,format=raw,cache=unsafe,file=" + filepath.Join(m.Scratch, "disk"), "-device", "virtio-blk-pci,drive=root",
		"-chardev", "file,id=out,path=/dev/stdout", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=out"}, how...)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	var stderr strings.Builder
	sign := &first{Writer: out, seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = sign, &stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start qemu: %w", err)
	}
	silence := time.AfterFunc(firstSign, func() {
		select {
		case <-sign.seen:
		default:
			cancel(errSilent)
		}
	})
	defer silence.Stop()
	err := cmd.Wait()
	if context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	select {
	case <-sign.seen:
	default:
		err = errors.Join(errSilent, err)
	}
	if err != nil {
		return fmt.Errorf("run qemu %s: %w: %s", how[1], err, stderr.String())
	}
	return nil
}

// first tells when something is written for the first time.
type first struct {
	io.Writer
	once sync.Once
	seen chan struct{}
}

func (f *first) Write(b []byte) (int, error) {
	f.once.Do(func() { close(f.seen) })
	return f.Writer.Write(b)
}

// disk makes the image of the root file system.
func (m *Machine) disk(ctx context.Context) error {
	path := filepath.Join(m.Scratch, "disk")
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	// Without a journal: it lives once.
	out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-b", "4096", "-i", "16384",
		"-d", m.Root, path, strconv.Itoa(m.Disk)+"m").CombinedOutput()
	if err != nil {
		return fmt.Errorf("make disk: %w: %s", err, out)
	}
	return nil
}

const initScript = `#!/busybox sh
/busybox mount -t devtmpfs dev /dev
for m in %s; do /busybox insmod /$m; done
/busybox mount -t ext4 /dev/vda /root && exec /busybox switch_root /root /sbin/init
/busybox reboot -f
`

// initramfs makes the first file system.
func (m *Machine) initramfs(release string) error {
	a := &archive{}
	for _, dir := range []string{"dev", "root"} {
		a.add(dir, 0o040755, nil)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	a.add("busybox", 0o100755, busybox)
	var files []string
	for _, name := range diskDrivers {
		// Debian compresses them, or not.
		found, err := filepath.Glob(filepath.Join(m.Kernel, "lib/modules", release, "kernel/drivers/*", name+".ko*"))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%d modules %s for %s, want one", len(found), name, release)
		}
		module, err := os.ReadFile(found[0])
		if err != nil {
			return err
		}
		files = append(files, filepath.Base(found[0]))
		a.add(filepath.Base(found[0]), 0o100644, module)
	}
	a.add("init", 0o100755, fmt.Appendf(nil, initScript, strings.Join(files, " ")))
	return os.WriteFile(filepath.Join(m.Scratch, "initramfs"), a.end(), 0o600)
}
