package bare

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// Errno is the kernel's reason.
type Errno = syscall.Errno

// Fault is why something failed, and what was being done: "mount /a: open b: no such file or directory".
type Fault struct {
	// Errno is the kernel's reason; 0: it was not the kernel.
	Errno Errno
	// Exit is the exit code where the program itself cannot be executed, otherwise 0.
	Exit int

	text  string // the reason, if not Errno's; or what follows it
	op    string
	path  string
	cause *Fault
}

// Wrap returns nil for 0, otherwise the fault "op path: reason".
func Wrap(op, path string, e Errno) *Fault {
	if e == 0 {
		return nil
	}
	f := New[Fault]()
	f.Errno, f.op, f.path = e, op, path
	return f
}

// Because is the fault "op path: reason", and just the reason where op is "".
func Because(op, path, reason string) *Fault {
	f := New[Fault]()
	f.op, f.path, f.text = op, path, reason
	return f
}

// In returns nil for nil, otherwise the fault "op path: f".
func (f *Fault) In(op, path string) *Fault {
	if f == nil {
		return nil
	}
	outer := New[Fault]()
	outer.Errno, outer.op, outer.path, outer.cause = f.Errno, op, path, f
	return outer
}

// Is reports whether the kernel's reason is e. There is a reason only where there is a fault.
func (f *Fault) Is(e Errno) bool { return f != nil && f.Errno == e }

// Reason is e.Error(), which makes what has no name of memory of the Go runtime's.
func Reason(e Errno) string {
	switch {
	case e == 0, e == 41, e == 58, e > unix.EHWPOISON: // such as those of filters, and the kernel's own from 512 on
		return Text("errno ", Number(int(e)))
	}
	return e.Error()
}

// SignalName is s.String(), for which the same holds.
func SignalName(s unix.Signal) string {
	if s < unix.SIGHUP || s > unix.SIGSYS {
		return Text("signal ", Number(int(s)))
	}
	return s.String()
}

// Text is all that there is to say.
func (f *Fault) Text() string {
	text := ""
	if f.op != "" {
		text = Text(f.op, " ", f.path, ": ")
	}
	switch {
	case f.cause != nil:
		return Text(text, f.cause.Text())
	case f.Errno == 0:
		return Text(text, f.text)
	case f.text != "":
		return Text(text, Reason(f.Errno), "\n", f.text)
	}
	return Text(text, Reason(f.Errno))
}
