// Package cgrouptest is for tests of what the kernel does to groups on a bad day.
package cgrouptest

import (
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/cgroup"
)

// Of linux/userfaultfd.h.
const (
	uffdVersion  = 0xaa
	uffdAPI      = 0xc018aa3f
	uffdRegister = 0xc020aa00
	uffdMissing  = 1
	uffdMessage  = 32 // bytes
)

// Unfreezable puts a thread of ours into the group's v1 freezer that cannot be frozen, as one that waits for a dead disk cannot: it is in the middle of a
// system call that needs a page which nobody brings. Frozen, the group stays FREEZING until the thread is released, at the latest by the test's end.
// The thread's process is none of the group's. A host without a v1 freezer skips the test.
func Unfreezable(t testing.TB, g *cgroup.Group) (release func()) {
	t.Helper()
	freezer, ok := g.Dirs()["freezer"]
	if !ok {
		t.Skip("the host has no v1 freezer")
	}
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	faults := faultsOf(t, page)
	from, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go onThread(func() {
		err := linux.WriteFile(unix.AT_FDCWD, filepath.Join(freezer, "tasks"), "0")
		if err == nil {
			_, err = unix.Read(from, page)
		}
		ended <- err
	})
	release = sync.OnceFunc(func() {
		unix.Close(faults) // now the page comes
		if err := <-ended; err != nil {
			t.Error(err)
		}
		unix.Close(from)
		if err := unix.Munmap(page); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	if n, err := unix.Read(faults, make([]byte, uffdMessage)); err != nil || n != uffdMessage { // it waits
		t.Fatal(n, err)
	}
	return release
}

// onThread calls f on a thread that ends with it. The main thread would not, and where it is its process counts as being.
func onThread(f func()) {
	runtime.LockOSThread() // never unlocked
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		onThread(f)
	}()
	<-done
}

// faultsOf hears of the page's first use, which waits for the descriptor to be closed.
func faultsOf(t testing.TB, page []byte) int {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		t.Skipf("userfaultfd: %v", errno)
	}
	api := [3]uint64{uffdVersion}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		t.Fatal(errno)
	}
	region := [4]uint64{uint64(uintptr(unsafe.Pointer(&page[0]))), uint64(len(page)), uffdMissing}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdRegister, uintptr(unsafe.Pointer(&region))); errno != 0 {
		t.Fatal(errno)
	}
	return int(fd)
}
