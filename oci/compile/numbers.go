package compile

import (
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/oci/plan"
)

// maxNumber bounds processors and memory nodes, beyond what kernels are built for.
const maxNumber = 8192

// mask turns "0-3,7" into a bit mask.
func mask(list string) ([]uint64, error) {
	var words []uint64
	for part := range strings.SplitSeq(list, ",") {
		first, last, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || from > to || to >= maxNumber {
			return nil, fmt.Errorf("%q: must be a list such as 0-3,7", list)
		}
		for n := from; n <= to; n++ {
			for uint64(len(words)) <= n/64 {
				words = append(words, 0)
			}
			words[n/64] |= 1 << (n % 64)
		}
	}
	return words, nil
}

// affinity compiles what processors an exec runs on: before it is in the cgroup, and after.
func affinity(p *plan.Process, a *specs.CPUAffinity) (err error) {
	if a == nil {
		return nil
	}
	if a.Initial != "" {
		if p.FirstCPUs, err = mask(a.Initial); err != nil {
			return fmt.Errorf("process.execCPUAffinity.initial %w", err)
		}
	}
	if a.Final != "" {
		if p.CPUs, err = mask(a.Final); err != nil {
			return fmt.Errorf("process.execCPUAffinity.final %w", err)
		}
	}
	return nil
}

func memoryPolicy(m *specs.LinuxMemoryPolicy) (*plan.MemoryPolicy, error) {
	mode, ok := map[specs.MemoryPolicyModeType]uint32{specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2,
		specs.MpolInterleave: 3, specs.MpolLocal: 4, specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6}[m.Mode]
	if !ok {
		return nil, fmt.Errorf("linux.memoryPolicy.mode %q: unknown", m.Mode)
	}
	out := &plan.MemoryPolicy{Mode: mode}
	for _, flag := range m.Flags {
		bit, ok := map[specs.MemoryPolicyFlagType]uint32{specs.MpolFNumaBalancing: 1 << 13, specs.MpolFRelativeNodes: 1 << 14,
			specs.MpolFStaticNodes: 1 << 15}[flag]
		if !ok {
			return nil, fmt.Errorf("linux.memoryPolicy.flags %q: unknown", flag)
		}
		out.Mode |= bit
	}
	if m.Nodes == "" {
		return out, nil
	}
	var err error
	if out.Nodes, err = mask(m.Nodes); err != nil {
		return nil, fmt.Errorf("linux.memoryPolicy.nodes %w", err)
	}
	return out, nil
}
