// Package seccomp compiles OCI seccomp profiles to BPF, without libseccomp.
//
// # The program
//
//	ld arch
//	x86_64?  -> ld nr; nr >= x32 bit? -> x32 section
//	            search tree over the ranges of numbers that share a verdict
//	              leaf: ret action
//	              leaf: conditions on arguments, in the profile's order,
//	                    then the unconditional action, or the default
//	x86?     -> the same with its numbers
//	else     -> kill the process
//
// A system call that is newer than all those a profile names gets ENOSYS
// instead of the default errno, so that C libraries fall back to older calls.
package seccomp

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// Flags of the seccomp system call.
const (
	flagLog       = 1 << 1
	flagSpecAllow = 1 << 2
	// Listener makes loading return a descriptor by which an agent answers what
	// the filter asks.
	Listener             = 1 << 3
	flagWaitKillableRecv = 1 << 5
)

// Values that a filter returns.
const (
	retKillThread  = 0x00000000
	retKillProcess = 0x80000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retNotify      = 0x7fc00000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
)

const (
	eperm  = 1
	enosys = 38
	x32Bit = 0x40000000
)

// Offsets in struct seccomp_data, little endian.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

// architecture is one that this package knows.
type architecture struct {
	name   specs.Arch
	audit  uint32 // AUDIT_ARCH_
	column int    // in syscalls.txt
	bit    uint32 // set in its numbers
}

func architectures() []architecture {
	return []architecture{
		{specs.ArchX86_64, 0xc000003e, 0, 0},
		{specs.ArchX32, 0xc000003e, 0, x32Bit},
		{specs.ArchX86, 0x40000003, 1, 0},
		{specs.ArchAARCH64, 0xc00000b7, 2, 0},
		{specs.ArchARM, 0x40000028, 3, 0},
	}
}

//go:embed syscalls.txt
var syscallsText string

// columns are the architectures with numbers of their own.
const columns = 4

// table has the numbers by name, one per column, -1 for none. Read only.
var table = sync.OnceValue(func() map[string][columns]int {
	t := make(map[string][columns]int, 512)
	for line := range strings.Lines(syscallsText) {
		fields := strings.Fields(line)
		if len(fields) != 1+columns || fields[0] == "#" {
			continue
		}
		var numbers [columns]int
		for i := range numbers {
			n, err := strconv.Atoi(fields[i+1])
			if err != nil {
				n = -1
			}
			numbers[i] = n
		}
		t[fields[0]] = numbers
	}
	return t
})

// rule is a verdict on one system call.
type rule struct {
	conditions []specs.LinuxSeccompArg // all must hold; none: always
	action     uint32
}

// Compile returns the program, eight bytes an instruction as the kernel takes
// it, and the flags to load it with.
func Compile(p *specs.LinuxSeccomp) (program []byte, flags uint32, err error) {
	raw, flags, err := compile(p)
	if err != nil {
		return nil, 0, err
	}
	program = make([]byte, 0, 8*len(raw))
	for _, i := range raw {
		program = binary.LittleEndian.AppendUint16(program, i.Op)
		program = append(program, i.Jt, i.Jf)
		program = binary.LittleEndian.AppendUint32(program, i.K)
	}
	return program, flags, nil
}

func compile(p *specs.LinuxSeccomp) ([]bpf.RawInstruction, uint32, error) {
	notify, err := notifies(p)
	if err != nil {
		return nil, 0, err
	}
	flags, err := parseFlags(p.Flags, notify)
	if err != nil {
		return nil, 0, err
	}
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, 0, fmt.Errorf("defaultAction: %w", err)
	}
	chosen, err := choose(p.Architectures)
	if err != nil {
		return nil, 0, err
	}
	var out code
	out.load(offsetArch)
	for i := 0; i < len(chosen); i++ {
		// Architectures of one audit value follow each other: x86_64, x32.
		group := chosen[i : i+1]
		if i+1 < len(chosen) && chosen[i+1].audit == chosen[i].audit {
			group = chosen[i : i+2]
			i++
		}
		section, err := section(p, group, fallback)
		if err != nil {
			return nil, 0, err
		}
		out.jump(bpf.JumpEqual, group[0].audit, 1, 0)
		out.skip(len(section))
		out = append(out, section...)
	}
	out.ret(retKillProcess)
	if len(out) > 4096 {
		return nil, 0, fmt.Errorf("profile needs %d instructions, more than the kernel's 4096", len(out))
	}
	raw, err := bpf.Assemble(out)
	return raw, flags, err
}

// notifies tells whether the profile asks an agent, and refuses what could only hang.
func notifies(p *specs.LinuxSeccomp) (bool, error) {
	if p.DefaultAction == specs.ActNotify {
		return false, errors.New("defaultAction SCMP_ACT_NOTIFY: nobody could send the listener to the agent")
	}
	notify := false
	for i, s := range p.Syscalls {
		if s.Action != specs.ActNotify {
			continue
		}
		notify = true
		if slices.Contains(s.Names, "sendmsg") {
			return false, fmt.Errorf("syscalls[%d]: SCMP_ACT_NOTIFY of sendmsg: the listener could not be sent to the agent", i)
		}
	}
	switch {
	case notify && p.ListenerPath == "":
		return false, errors.New("listenerPath: required with SCMP_ACT_NOTIFY")
	case p.ListenerPath == "" && p.ListenerMetadata != "":
		return false, errors.New("listenerMetadata: needs listenerPath")
	}
	return notify, nil
}

func parseFlags(list []specs.LinuxSeccompFlag, notify bool) (flags uint32, err error) {
	if notify {
		flags = Listener
	}
	for _, f := range list {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= flagLog
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= flagSpecAllow
		case specs.LinuxSeccompFlagWaitKillableRecv:
			if !notify {
				return 0, fmt.Errorf("flag %s: needs SCMP_ACT_NOTIFY", f)
			}
			flags |= flagWaitKillableRecv
		case "SECCOMP_FILTER_FLAG_TSYNC": // the filter is loaded by the only thread that execs
		default:
			return 0, fmt.Errorf("flag %s: unknown", f)
		}
	}
	return flags, nil
}

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(eperm)
	if errno != nil {
		data = uint32(*errno)
	}
	if data > 0xffff {
		return 0, fmt.Errorf("errnoRet %d: too large", data)
	}
	switch a {
	case specs.ActErrno, specs.ActTrace:
	default:
		if errno != nil {
			return 0, fmt.Errorf("action %q: takes no errnoRet", a)
		}
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActTrace:
		return retTrace | data, nil
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActNotify:
		return retNotify, nil
	}
	return 0, fmt.Errorf("action %q: unknown", a)
}

// choose returns the architectures of the profile that this package knows, in
// its own order. A profile that names none means the native one; those of
// other processor families cannot run here anyway.
func choose(names []specs.Arch) ([]architecture, error) {
	if len(names) == 0 {
		names = []specs.Arch{Native()}
	}
	for _, n := range names {
		if !slices.Contains(known(), n) {
			return nil, fmt.Errorf("architectures: %q: unknown", n)
		}
	}
	var chosen []architecture
	for _, a := range architectures() {
		if slices.Contains(names, a.name) {
			chosen = append(chosen, a)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("architectures %v: none is supported", names)
	}
	return chosen, nil
}

// known are the specification's architectures.
func known() []specs.Arch {
	return []specs.Arch{specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64,
		specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE,
		specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K,
		specs.ArchSH, specs.ArchSHEB}
}

// section is the code for the architectures of one audit value.
func section(p *specs.LinuxSeccomp, group []architecture, fallback uint32) (code, error) {
	var out code
	out.load(offsetNr)
	first, err := search(p, group[0], fallback)
	if err != nil {
		return nil, err
	}
	if group[0].audit == architectures()[0].audit && group[0].bit == 0 {
		// Numbers with the x32 bit are another architecture's, whatever else
		// the tree says about large numbers.
		other := code{bpf.RetConstant{Val: retKillProcess}}
		if len(group) == 2 {
			if other, err = search(p, group[1], fallback); err != nil {
				return nil, err
			}
		}
		out.jump(bpf.JumpGreaterOrEqual, x32Bit, 0, 1)
		out.skip(len(first))
		out = append(out, first...)
		return append(out, other...), nil
	}
	return append(out, first...), nil
}

// span is a range of numbers with one verdict, up to the next span.
type span struct {
	from uint32
	code code
}

func search(p *specs.LinuxSeccomp, a architecture, fallback uint32) (code, error) {
	rules, err := collect(p, a)
	if err != nil {
		return nil, err
	}
	spans := make([]span, 0, 2*len(rules)+2)
	add := func(from uint32, c code) {
		if n := len(spans); n > 0 && slices.Equal(spans[n-1].code, c) {
			return
		}
		spans = append(spans, span{from, c})
	}
	numbers := make([]uint32, 0, len(rules))
	for nr := range rules {
		numbers = append(numbers, nr)
	}
	slices.Sort(numbers)
	otherwise := verdict(fallback)
	add(0, otherwise)
	// Most have but a verdict, and the same one: it is made once.
	same, usual := otherwise, fallback
	for i, nr := range numbers {
		r := rules[nr]
		if len(r) > 1 || len(r[0].conditions) > 0 {
			add(nr, leaf(r, fallback))
		} else {
			if r[0].action != usual {
				same, usual = verdict(r[0].action), r[0].action
			}
			add(nr, same)
		}
		if i+1 == len(numbers) || numbers[i+1] != nr+1 {
			add(nr+1, otherwise)
		}
	}
	if n := len(numbers); n > 0 && fallback&0xffff0000 == retErrno {
		last := numbers[n-1] + 1
		if spans[len(spans)-1].from == last {
			spans = spans[:len(spans)-1]
		}
		add(last, verdict(retErrno|enosys))
	}
	return tree(spans), nil
}

// collect lists the rules by number.
func collect(p *specs.LinuxSeccomp, a architecture) (map[uint32][]rule, error) {
	rules := make(map[uint32][]rule, len(table()))
	for i, s := range p.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		if err := checkArgs(s.Args); err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		all := alternatives(s.Args)
		for _, name := range s.Names {
			numbers, ok := table()[name]
			if !ok || numbers[a.column] < 0 {
				continue // not a system call here; profiles name those of all architectures
			}
			nr := uint32(numbers[a.column]) | a.bit
			for _, conditions := range all {
				rules[nr] = append(rules[nr], rule{conditions, act})
			}
		}
	}
	return rules, nil
}

func checkArgs(args []specs.LinuxSeccompArg) error {
	for _, a := range args {
		if a.Index > 5 {
			return fmt.Errorf("argument index %d: must be from 0 to 5", a.Index)
		}
		switch a.Op {
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual,
			specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual:
		default:
			return fmt.Errorf("operator %q: unknown", a.Op)
		}
	}
	return nil
}

// alternatives splits conditions: on different arguments all must hold, but
// several on the same argument are alternatives (as with runc).
func alternatives(args []specs.LinuxSeccompArg) [][]specs.LinuxSeccompArg {
	var seen [6]bool
	repeated := false
	for _, a := range args {
		repeated = repeated || seen[a.Index]
		seen[a.Index] = true
	}
	if !repeated {
		return [][]specs.LinuxSeccompArg{args}
	}
	var list [][]specs.LinuxSeccompArg
	for _, a := range args {
		list = append(list, []specs.LinuxSeccompArg{a})
	}
	return list
}
