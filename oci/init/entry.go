//go:build amd64 || arm64

//lint:file-ignore U1000 all is reached from the linker's entry

package main

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
	"github.com/yare-dev/yare/oci/launch"
)

// entry is where the kernel starts the program, by -E of the linker: on a stack of ours and without the Go runtime, which it starts if
// begin returns.
func entry()

// What entry needs before there is any Go.
var (
	// g takes the place of a goroutine: zeros, so that no stack pointer is below its guard.
	g [64]uintptr
	// thread is where the processor's register for the thread points to, and g's address.
	thread [4]uintptr
	// stack is not the kernel's: that one may be too small once the plan's limits hold.
	stack [stackSize]byte
	// kernel is what the kernel's stack pointer was.
	kernel uintptr
)

const stackSize = 1 << 20

// begin does what a process that sets up others is for; it returns to nobody but the shim. The kernel has left its arguments and
// environment at top: their number, pointers to them, nil, and pointers to the variables.
func begin(top unsafe.Pointer) {
	args := *(*uintptr)(top)
	var role, fd string
	for at := unsafe.Add(top, 8*(args+2)); ; at = unsafe.Add(at, 8) {
		p := *(**byte)(at)
		if p == nil {
			break
		}
		read(bare.GoString(p), &role, &fd)
	}
	perform(role, fd)
	_, _ = bare.Pointer(unix.SYS_GETRLIMIT, unix.RLIMIT_NOFILE, &launch.OpenFiles)
}

// read takes the role and the first descriptor from a variable of the environment, if they are in it.
func read(variable string, role, fd *string) {
	if value, ok := after(variable, launch.RoleVariable+"="); ok {
		*role = value
	}
	if value, ok := after(variable, launch.FDVariable+"="); ok {
		*fd = value
	}
}
