package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// code is a piece of program. Pieces end with a return, so they can be placed
// after each other; jumps are relative and stay inside a piece.
type code []bpf.Instruction

func (c *code) load(offset uint32) { *c = append(*c, bpf.LoadAbsolute{Off: offset, Size: 4}) }
func (c *code) ret(value uint32)   { *c = append(*c, bpf.RetConstant{Val: value}) }
func (c *code) skip(n int)         { *c = append(*c, bpf.Jump{Skip: uint32(n)}) }
func (c *code) jump(test bpf.JumpTest, value uint32, yes, no int) {
	*c = append(*c, bpf.JumpIf{Cond: test, Val: value, SkipTrue: uint8(yes), SkipFalse: uint8(no)})
}

func verdict(action uint32) code { return code{bpf.RetConstant{Val: action}} }

// tree finds the span of the number in the accumulator. Leaves may change the
// accumulator, because nothing comes after them.
func tree(spans []span) code {
	out := make(code, 0, treeLen(spans))
	out.tree(spans)
	return out
}

func (c *code) tree(spans []span) {
	if len(spans) == 1 {
		*c = append(*c, spans[0].code...)
		return
	}
	middle := len(spans) / 2
	if below := treeLen(spans[:middle]); below <= 255 {
		c.jump(bpf.JumpGreaterOrEqual, spans[middle].from, below, 0)
	} else { // farther than a conditional jump reaches
		c.jump(bpf.JumpGreaterOrEqual, spans[middle].from, 0, 1)
		c.skip(below)
	}
	c.tree(spans[:middle])
	c.tree(spans[middle:])
}

// treeLen is the length of a tree.
func treeLen(spans []span) int {
	if len(spans) == 1 {
		return len(spans[0].code)
	}
	middle := len(spans) / 2
	below, above := treeLen(spans[:middle]), treeLen(spans[middle:])
	if below <= 255 {
		return 1 + below + above
	}
	return 2 + below + above
}

// leaf decides one system call: conditional rules in order, then the
// unconditional one, or the fallback.
func leaf(rules []rule, fallback uint32) code {
	last := fallback
	for _, r := range rules {
		if len(r.conditions) == 0 {
			last = r.action
			break
		}
	}
	var out code
	for _, r := range rules {
		if len(r.conditions) > 0 {
			out = append(out, conditional(r)...)
		}
	}
	return append(out, bpf.RetConstant{Val: last})
}

// conditional is code that returns the action if all conditions hold, and
// otherwise runs into what follows it.
func conditional(r rule) code {
	out := verdict(r.action)
	for i := len(r.conditions) - 1; i >= 0; i-- {
		out = append(condition(r.conditions[i], len(out)), out...)
	}
	return out
}

// condition runs into what follows it if the condition holds, and otherwise
// skips n instructions more.
func condition(a specs.LinuxSeccompArg, n int) code {
	low := uint32(offsetArgs + 8*a.Index)
	value, mask := a.Value, ^uint64(0)
	if a.Op == specs.OpMaskedEqual {
		value, mask = a.ValueTwo, a.Value
	}
	hi, lo := uint32(value>>32), uint32(value)
	var out code
	switch a.Op {
	case specs.OpEqualTo:
		out.load(low + 4)
		out.jump(bpf.JumpEqual, hi, 0, 2+n)
		out.load(low)
		out.jump(bpf.JumpEqual, lo, 0, n)
	case specs.OpNotEqual:
		out.load(low + 4)
		out.jump(bpf.JumpEqual, hi, 0, 2)
		out.load(low)
		out.jump(bpf.JumpEqual, lo, n, 0)
	case specs.OpMaskedEqual:
		out.load(low + 4)
		out = append(out, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(mask >> 32)})
		out.jump(bpf.JumpEqual, hi&uint32(mask>>32), 0, 3+n)
		out.load(low)
		out = append(out, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(mask)})
		out.jump(bpf.JumpEqual, lo&uint32(mask), 0, n)
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		test := bpf.JumpGreaterThan
		if a.Op == specs.OpGreaterEqual {
			test = bpf.JumpGreaterOrEqual
		}
		out.load(low + 4)
		out.jump(bpf.JumpGreaterThan, hi, 3, 0)
		out.jump(bpf.JumpEqual, hi, 0, 2+n)
		out.load(low)
		out.jump(test, lo, 0, n)
	case specs.OpLessThan, specs.OpLessEqual:
		test := bpf.JumpGreaterOrEqual
		if a.Op == specs.OpLessEqual {
			test = bpf.JumpGreaterThan
		}
		out.load(low + 4)
		out.jump(bpf.JumpGreaterThan, hi, 3+n, 0)
		out.jump(bpf.JumpEqual, hi, 0, 2)
		out.load(low)
		out.jump(test, lo, n, 0)
	}
	return out
}
