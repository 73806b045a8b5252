package seccomp

import (
	"encoding/binary"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

const (
	auditX86_64  = 0xc000003e
	auditX86     = 0x40000003
	auditAARCH64 = 0xc00000b7
)

// run interprets the program for one system call. The interpreter loads in
// network byte order, so the data is written in it.
func run(t *testing.T, p *specs.LinuxSeccomp, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	raw, _, err := compile(p)
	if err != nil {
		t.Fatal(err)
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("program does not disassemble")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offsetNr:], nr)
	binary.BigEndian.PutUint32(data[offsetArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offsetArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[offsetArgs+8*i+4:], uint32(a>>32))
	}
	v, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

func ptr[T any](v T) *T { return &v }

func TestActions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		want   uint32
	}{
		{specs.ActAllow, nil, retAllow},
		{specs.ActErrno, nil, retErrno | eperm},
		{specs.ActErrno, ptr(uint(38)), retErrno | 38},
		{specs.ActKill, nil, retKillThread},
		{specs.ActKillThread, nil, retKillThread},
		{specs.ActKillProcess, nil, retKillProcess},
		{specs.ActTrap, nil, retTrap},
		{specs.ActTrace, ptr(uint(7)), retTrace | 7},
		{specs.ActLog, nil, retLog},
		{specs.ActNotify, nil, retNotify},
	} {
		t.Run(string(tc.action), func(t *testing.T) {
			t.Parallel()
			p := &specs.LinuxSeccomp{DefaultAction: specs.ActTrap, Architectures: []specs.Arch{specs.ArchX86_64}, ListenerPath: "/s",
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "no_such_call"}, Action: tc.action, ErrnoRet: tc.errno}}}
			if got := run(t, p, auditX86_64, 83); got != tc.want {
				t.Errorf("mkdir: got %#x, want %#x", got, tc.want)
			}
			for _, nr := range []uint32{0, 82, 84, 462} {
				if got := run(t, p, auditX86_64, nr); got != retTrap {
					t.Errorf("call %d: got %#x, want the default", nr, got)
				}
			}
		})
	}
}

func TestArchitectures(t *testing.T) {
	t.Parallel()
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActTrap,
		Architectures: []specs.Arch{specs.ArchX86, specs.ArchX86_64, specs.ArchAARCH64, specs.ArchARM, specs.ArchMIPS},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"getpid"}, Action: specs.ActAllow}}}
	for name, tc := range map[string]struct{ arch, nr, want uint32 }{
		"x86_64":            {auditX86_64, 39, retAllow},
		"x86":               {auditX86, 20, retAllow},
		"aarch64":           {auditAARCH64, 172, retAllow},
		"arm":               {0x40000028, 20, retAllow},
		"x86 number on 64":  {auditX86_64, 20, retTrap},
		"x32 not listed":    {auditX86_64, 39 | x32Bit, retKillProcess},
		"foreign processor": {0x8, 39, retKillProcess},
	} {
		if got := run(t, p, tc.arch, tc.nr); got != tc.want {
			t.Errorf("%s: got %#x, want %#x", name, got, tc.want)
		}
	}
	p.Architectures = append(p.Architectures, specs.ArchX32)
	if got := run(t, p, auditX86_64, 39|x32Bit); got != retAllow {
		t.Errorf("x32: got %#x, want allow", got)
	}
	if got := run(t, p, auditX86_64, 39); got != retAllow {
		t.Errorf("x86_64 beside x32: got %#x, want allow", got)
	}
}

// TestConditions compares every operator with the same comparison in Go, on
// values around each boundary of the two words.
func TestConditions(t *testing.T) {
	t.Parallel()
	values := []uint64{0, 1, 2, 1<<32 - 1, 1 << 32, 1<<32 + 1, 5<<32 + 3, 5<<32 + 4, 6 << 32, 1<<64 - 1}
	operators := map[specs.LinuxSeccompOperator]func(arg, a, b uint64) bool{
		specs.OpEqualTo:      func(arg, a, _ uint64) bool { return arg == a },
		specs.OpNotEqual:     func(arg, a, _ uint64) bool { return arg != a },
		specs.OpLessThan:     func(arg, a, _ uint64) bool { return arg < a },
		specs.OpLessEqual:    func(arg, a, _ uint64) bool { return arg <= a },
		specs.OpGreaterThan:  func(arg, a, _ uint64) bool { return arg > a },
		specs.OpGreaterEqual: func(arg, a, _ uint64) bool { return arg >= a },
		specs.OpMaskedEqual:  func(arg, a, b uint64) bool { return arg&a == b&a },
	}
	for op, holds := range operators {
		t.Run(string(op), func(t *testing.T) {
			t.Parallel()
			for _, value := range values {
				for _, arg := range values {
					p := &specs.LinuxSeccomp{DefaultAction: specs.ActTrap, Architectures: []specs.Arch{specs.ArchX86_64},
						Syscalls: []specs.LinuxSyscall{{Names: []string{"socket"}, Action: specs.ActAllow,
							Args: []specs.LinuxSeccompArg{{Index: 2, Value: value, ValueTwo: arg | 1, Op: op}}}}}
					want := uint32(retTrap)
					if holds(arg, value, arg|1) {
						want = retAllow
					}
					if got := run(t, p, auditX86_64, 41, 9, 9, arg); got != want {
						t.Errorf("%#x %s %#x: got %#x, want %#x", arg, op, value, got, want)
					}
				}
			}
		})
	}
}

func TestSeveralConditions(t *testing.T) {
	t.Parallel()
	eq := func(index uint, value uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Value: value, Op: specs.OpEqualTo}
	}
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{eq(0, 1), eq(1, 2)}},
			{Names: []string{"clone"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{eq(0, 3), eq(0, 4)}},
			{Names: []string{"clone"}, Action: specs.ActLog},
		}}
	for _, tc := range []struct {
		args []uint64
		want uint32
	}{
		{[]uint64{1, 2}, retAllow}, {[]uint64{1, 3}, retLog}, {[]uint64{3, 0}, retTrap},
		{[]uint64{4, 9}, retTrap}, {[]uint64{5, 5}, retLog},
	} {
		if got := run(t, p, auditX86_64, 56, tc.args...); got != tc.want {
			t.Errorf("clone%v: got %#x, want %#x", tc.args, got, tc.want)
		}
	}
}

func TestNewerCallsAreENOSYS(t *testing.T) {
	t.Parallel()
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"read", "openat2"}, Action: specs.ActAllow}}}
	for nr, want := range map[uint32]uint32{0: retAllow, 1: retErrno | eperm, 437: retAllow, 438: retErrno | enosys, 9999: retErrno | enosys} {
		if got := run(t, p, auditX86_64, nr); got != want {
			t.Errorf("call %d: got %#x, want %#x", nr, got, want)
		}
	}
}

func notify(call, path string) specs.LinuxSeccomp {
	return specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: path,
		Syscalls: []specs.LinuxSyscall{{Names: []string{call}, Action: specs.ActNotify}}}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	p := notify("mkdir", "/s")
	p.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv}
	if _, flags, err := Compile(&p); err != nil || flags != Listener|flagLog|flagSpecAllow|flagWaitKillableRecv {
		t.Errorf("got %#x, %v", flags, err)
	}
}

func TestRejected(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		profile specs.LinuxSeccomp
		want    string
	}{
		"default action":    {specs.LinuxSeccomp{DefaultAction: "NO"}, "defaultAction"},
		"no listener":       {notify("mkdir", ""), "listenerPath"},
		"notify all":        {specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, "SCMP_ACT_NOTIFY"},
		"notify sendmsg":    {notify("sendmsg", "/s"), "sendmsg"},
		"metadata":          {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerMetadata: "x"}, "listenerMetadata"},
		"errno":             {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: ptr(uint(1))}, "takes no errnoRet"},
		"wait":              {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}}, "needs"},
		"unknown processor": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_Z"}}, "unknown"},
		"flag":              {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}}, "flag X"},
		"architecture":      {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_MIPS"}}, "none is supported"},
		"index": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"},
			Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}}, "index 6"},
		"operator": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"},
			Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "=="}}}}}, "operator"},
	} {
		if _, _, err := Compile(&tc.profile); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tc.want)
		}
	}
}
