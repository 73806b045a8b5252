// Package bare is what a program needs that runs without the Go runtime: memory, errors and system calls. It takes the place of
// packages os, fmt and x/sys/unix in yare-init, which sets up a container in less time than that runtime takes to start.
//
// Go code needs its runtime for memory from the heap, for more stack, for other goroutines and for panics. Code that asks for none of
// these is plain machine code, and correct without it. So, here and in oci/init, for all but the shim:
//
//   - memory comes from [Make], [New] and [Text], never from append, new, make, a string's + or conversion, a map, or a local variable
//     whose address goes where the compiler loses sight of it;
//   - system calls are those below, which do not tell a scheduler;
//   - package variables have values that the compiler knows: nobody runs what initialises others;
//   - a failure is a [Fault], not an error.
//
// What must not be called is watched by the test of package main in oci/init, which looks at the machine code of the program; an index
// out of range ends the process by a signal. The same code runs under the Go runtime as well, where the linker is not told otherwise.
package bare

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// room is how much memory there can be beside what the plan takes; only what is used is taken from the machine.
const room = 16 << 20

// space is the memory that there is, or nil for first, and used how much of it is taken. It is never given back: what execs gives all
// back.
var (
	first [16 << 10]byte
	space []byte
	used  int
)

// Reserve makes room for what n bytes describe. Without it there is room for an error.
func Reserve(n int) Errno {
	// An element's encoding is a byte at least; the largest element is some 300 bytes.
	size := room + 64*n
	address, _, e := syscall.RawSyscall6(unix.SYS_MMAP, 0, uintptr(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, ^uintptr(0), 0)
	if e != 0 {
		return e
	}
	// Where all memory has huge pages the first byte would take two megabytes, of the container's group, and the time to clear them.
	_, _, _ = syscall.RawSyscall(unix.SYS_MADVISE, address, uintptr(size), unix.MADV_NOHUGEPAGE)
	space, used = unsafe.Slice(*(**byte)(unsafe.Pointer(&address)), size), 0
	return 0
}

// Allocate returns n bytes of zeros for whatever needs an alignment of at most 8.
func Allocate(n uintptr) unsafe.Pointer {
	if space == nil { // not as its value from the beginning, which an init function would set
		space = first[:]
	}
	begin := (used + 7) &^ 7
	if n > uintptr(len(space)) || begin+int(n) > len(space) {
		_, _ = Write(2, "yare-init: out of memory\n")
		Exit(1)
	}
	used = begin + int(n)
	return unsafe.Pointer(unsafe.SliceData(space[begin:]))
}

// Mark is how much is taken, for Release to take back all that was taken since.
func Mark() int { return used }

// Release takes back, and clears, what was taken since the mark.
func Release(mark int) {
	clear(space[mark:used])
	used = mark
}

// Make returns a slice of n zeros.
func Make[T any](n int) []T {
	var t T
	return unsafe.Slice((*T)(Allocate(uintptr(n)*unsafe.Sizeof(t))), n)
}

// New returns a zero.
func New[T any]() *T {
	var t T
	return (*T)(Allocate(unsafe.Sizeof(t)))
}

// Text returns the parts, one after the other.
func Text(parts ...string) string {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b := Make[byte](n)
	rest := b
	for _, p := range parts {
		rest = rest[copy(rest, p):]
	}
	return View(b)
}

// View is the same bytes as a string; nobody is to write them any more.
func View(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Number is a number as text.
func Number(n int) string {
	var digits [20]byte
	i, negative := len(digits), n < 0
	for first := true; first || n != 0; first = false {
		d := n % 10
		if d < 0 {
			d = -d
		}
		i--
		digits[i] = byte('0' + d)
		n /= 10
	}
	if negative {
		i--
		digits[i] = '-'
	}
	b := Make[byte](len(digits) - i)
	copy(b, digits[i:])
	return View(b)
}

// CString is a string as the kernel takes it, up to its first zero byte.
func CString(s string) *byte {
	b := Make[byte](len(s) + 1)
	copy(b, s)
	return unsafe.SliceData(b)
}

// CStrings is a list of strings as execve takes it.
func CStrings(list []string) **byte {
	pointers := Make[*byte](len(list) + 1)
	for i, s := range list {
		pointers[i] = CString(s)
	}
	return unsafe.SliceData(pointers)
}

// GoString is what is at p up to a zero byte. It is not a copy.
func GoString(p *byte) string {
	if p == nil {
		return ""
	}
	n := 0
	for *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 {
		n++
	}
	return unsafe.String(p, n)
}
