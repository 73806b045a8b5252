package bare

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/plan"
)

// Option is one file system parameter of a new mount: a flag when Value is empty.
type Option = plan.Setting

// CloneTree returns a detached copy of the mount at path (or of the part of it below path; "" is dir itself), with everything mounted
// below when recursive.
func CloneTree(dir int, path string, recursive bool) (int, *Fault) {
	flags := uintptr(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, _, e := syscall.RawSyscall(unix.SYS_OPEN_TREE, at(dir), uintptr(unsafe.Pointer(CString(path))), flags)
	return int(fd), Wrap("open tree", path, e)
}

// Attach mounts the detached mount on target, an O_PATH descriptor. name is for the fault.
func Attach(mount, target int, name string) *Fault {
	empty := uintptr(unsafe.Pointer(&zero))
	_, _, e := syscall.RawSyscall6(unix.SYS_MOVE_MOUNT, uintptr(mount), empty, uintptr(target), empty,
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH, 0)
	return Wrap("mount on", name, e)
}

// zero is the empty string as the kernel takes it.
var zero byte

// SetMountAttr changes a mount, and with recursive all below it. name is for the fault.
func SetMountAttr(mount int, recursive bool, attr unix.MountAttr, name string) *Fault {
	flags := uintptr(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	_, _, e := syscall.RawSyscall6(unix.SYS_MOUNT_SETATTR, uintptr(mount), uintptr(unsafe.Pointer(&zero)), flags,
		uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	return Wrap("set mount attributes of", name, e)
}

// Mount is mount(2) without data: what changes the mounts that there are.
func Mount(source, target string, flags uint64) Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_MOUNT, uintptr(unsafe.Pointer(CString(source))), uintptr(unsafe.Pointer(CString(target))),
		uintptr(unsafe.Pointer(&zero)), uintptr(flags), 0, 0)
	return e
}

// NewFS makes a file system and returns it as a detached mount with the given MOUNT_ATTR_ flags.
func NewFS(fstype, source string, options []Option, attrs uint64) (int, *Fault) {
	fs, e := Name(unix.SYS_FSOPEN, fstype, unix.FSOPEN_CLOEXEC)
	if e != 0 {
		return -1, Wrap("fsopen", fstype, e)
	}
	mount, f := makeFS(fs, fstype, source, options, attrs)
	Close(fs)
	return mount, f
}

func makeFS(fs int, fstype, source string, options []Option, attrs uint64) (int, *Fault) {
	if source != "" {
		if e := configure(fs, unix.FSCONFIG_SET_STRING, "source", source); e != 0 {
			return -1, fsFault(fs, fstype, "source", e)
		}
	}
	if f := setOptions(fs, fstype, options); f != nil {
		return -1, f
	}
	if e := configure(fs, unix.FSCONFIG_CMD_CREATE, "", ""); e != 0 {
		return -1, fsFault(fs, fstype, "", e)
	}
	fd, e := Call(unix.SYS_FSMOUNT, uintptr(fs), unix.FSMOUNT_CLOEXEC, uintptr(attrs))
	if e != 0 {
		return -1, fsFault(fs, fstype, "", e)
	}
	return fd, nil
}

// Reconfigure changes parameters of the file system that is mounted at the O_PATH descriptor. name is for the fault.
func Reconfigure(mount int, options []Option, name string) *Fault {
	fs, _, e := syscall.RawSyscall(unix.SYS_FSPICK, uintptr(mount), uintptr(unsafe.Pointer(&zero)), unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if e != 0 {
		return Wrap("reconfigure", name, e)
	}
	f := setOptions(int(fs), name, options)
	if f == nil {
		if e := configure(int(fs), unix.FSCONFIG_CMD_RECONFIGURE, "", ""); e != 0 {
			f = fsFault(int(fs), name, "", e)
		}
	}
	Close(int(fs))
	return f
}

func setOptions(fs int, name string, options []Option) *Fault {
	for i := range options {
		o, kind := &options[i], unix.FSCONFIG_SET_STRING
		if o.Value == "" {
			kind = unix.FSCONFIG_SET_FLAG
		}
		if e := configure(fs, kind, o.Key, o.Value); e != 0 {
			return fsFault(fs, name, o.Key, e)
		}
	}
	return nil
}

// configure is fsconfig(2), in which what is "" is NULL.
func configure(fs, command int, key, value string) Errno {
	var k, v *byte
	if key != "" {
		k = CString(key)
	}
	if value != "" {
		v = CString(value)
	}
	_, _, e := syscall.RawSyscall6(unix.SYS_FSCONFIG, uintptr(fs), uintptr(command), uintptr(unsafe.Pointer(k)), uintptr(unsafe.Pointer(v)), 0, 0)
	return e
}

// fsFault adds what the kernel wrote to the context's message log.
func fsFault(fs int, fstype, option string, e Errno) *Fault {
	if option != "" {
		fstype = Text(fstype, " option ", option)
	}
	f := Wrap("make file system", fstype, e)
	log := Make[byte](512)
	if n, e := Read(fs, log); e == 0 && n > 2 {
		f.text = View(log[2:n])
	}
	return f
}
