//go:build amd64 || arm64

package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// onSignal is code, not a function that Go can call.
func onSignal()

// endBySignals lets the usual signals end a container that is not started: the kernel gives process 1 of a namespace none for which it
// has no handler. exec takes the handlers away.
func endBySignals() {
	const restorer = 0x04000000 // SA_RESTORER, which amd64 wants though nothing returns
	f := onSignal
	code := **(**uintptr)(unsafe.Pointer(&f))
	for _, signal := range [...]unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM} {
		was, _ := setAction(signal, action{handler: code, flags: restorer, restorer: code})
		if was.handler == ignored { // by nohup(1): the program inherits it, as from exec(2)
			_, _ = setAction(signal, was)
		}
	}
}
