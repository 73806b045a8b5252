package server

import "unsafe"

// bytePointer is the address of a string for prctl.
func bytePointer(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
