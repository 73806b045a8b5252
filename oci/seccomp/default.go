package seccomp

import (
	_ "embed"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

//go:embed default.txt
var defaultText string

// Address families that are refused: the host's virtual sockets, which no
// network namespace confines, and the kernel's crypto API, attack surface that
// containers do not need.
const (
	afALG   = 38
	afVSOCK = 40
)

// namespaceFlags are the CLONE_NEW flags of clone's first argument.
const namespaceFlags = 0x7E020000

// Default is the profile of containers that ask for RuntimeDefault, for the
// given capabilities ("CAP_SYS_ADMIN"): what programs usually need is allowed,
// the rest fails with EPERM, or ENOSYS where it is newer than the profile. The
// result is the caller's.
func Default(capabilities []string) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{Native()}}
	if Native() == specs.ArchX86_64 {
		p.Architectures = append(p.Architectures, specs.ArchX86, specs.ArchX32)
	}
	var names []string
	for line := range strings.Lines(defaultText) {
		condition, list, ok := strings.Cut(line, ":")
		if ok && !strings.HasPrefix(line, "#") && (condition == "all" || slices.Contains(capabilities, condition)) {
			names = append(names, strings.Fields(list)...)
		}
	}
	allow := func(name string, args ...specs.LinuxSeccompArg) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: args})
	}
	p.Syscalls = []specs.LinuxSyscall{{Names: names, Action: specs.ActAllow}}
	for _, value := range []uint64{0, 0x8, 0x20000, 0x20008, 0xffffffff} { // Linux and Linux32, with or without UNAME26; query
		allow("personality", specs.LinuxSeccompArg{Index: 0, Value: value, Op: specs.OpEqualTo})
	}
	for _, r := range [][2]uint64{{0, afALG - 1}, {afALG + 1, afALG + 1}} {
		// One rule per range, as conditions on one argument are alternatives.
		for family := r[0]; family <= r[1]; family++ {
			allow("socket", specs.LinuxSeccompArg{Index: 0, Value: family, Op: specs.OpEqualTo})
		}
	}
	allow("socket", specs.LinuxSeccompArg{Index: 0, Value: afVSOCK, Op: specs.OpGreaterThan})
	if !slices.Contains(capabilities, "CAP_SYS_ADMIN") {
		allow("clone", specs.LinuxSeccompArg{Index: 0, Value: namespaceFlags, ValueTwo: 0, Op: specs.OpMaskedEqual})
		// Its flags are in memory, out of a filter's sight: the C library is
		// to fall back to clone.
		errno := uint(enosys)
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &errno})
	}
	return p
}
