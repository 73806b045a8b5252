package main

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/init/bare"
)

// action is the kernel's struct sigaction.
type action struct{ handler, flags, restorer, mask uintptr }

func setAction(signal unix.Signal, a action) bare.Errno {
	_, e := bare.Pointer(unix.SYS_RT_SIGACTION, int(signal), &a, 0, unsafe.Sizeof(a.mask))
	return e
}

func ignoreSignal(signal unix.Signal) bare.Errno {
	const ignore = 1
	return setAction(signal, action{handler: ignore})
}

// onSignal is code, not a function that Go can call.
func onSignal()

// endBySignals lets the usual signals end a container that is not started: the kernel gives process 1 of a namespace none for which it
// has no handler. exec takes the handlers away.
func endBySignals() {
	const restorer = 0x04000000 // SA_RESTORER, which amd64 wants though nothing returns
	f := onSignal
	code := **(**uintptr)(unsafe.Pointer(&f))
	for _, signal := range [...]unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM} {
		_ = setAction(signal, action{handler: code, flags: restorer, restorer: code})
	}
}
