package server

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// bytePointer is the address of a string for prctl.
func bytePointer(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// endedChild returns a child that has ended and was not reaped, and leaves it so; 0 when there is none.
func endedChild() int {
	var info unix.Siginfo
	if unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) != nil {
		return 0
	}
	// The number is what follows the three fields that all have, and is aligned as a pointer is.
	const at = (unsafe.Offsetof(info.Code) + unsafe.Sizeof(info.Code) + unsafe.Sizeof(uintptr(0)) - 1) &^ (unsafe.Sizeof(uintptr(0)) - 1)
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), at)))
}
