package main

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
)

// action is the kernel's struct sigaction.
type action struct{ handler, flags, restorer, mask uintptr }

// setAction sets what a signal does, and returns what it did.
func setAction(signal unix.Signal, a action) (action, bare.Errno) {
	was := bare.New[action]() // not on the stack, which the Go runtime would move
	_, e := bare.Pointer(unix.SYS_RT_SIGACTION, int(signal), &a, uintptr(unsafe.Pointer(was)), unsafe.Sizeof(a.mask))
	return *was, e
}

const ignored = 1

func ignoreSignal(signal unix.Signal) bare.Errno {
	_, e := setAction(signal, action{handler: ignored})
	return e
}
