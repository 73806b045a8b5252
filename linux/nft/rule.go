package nft

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rule is a list of statements.
type Rule []Stmt

// Text is the rule in nft(8)'s syntax.
func (r Rule) Text() string {
	texts := make([]string, len(r))
	for i, s := range r {
		texts[i] = s.Text
	}
	return strings.Join(texts, " ")
}

// Stmt is a part of a rule. Text determines Exprs.
type Stmt struct {
	Text  string
	Exprs []expr.Any
}

// firstReg is the first of the sixteen 4-byte registers.
const firstReg = unix.NFT_REG32_00

// Field is a value of the packet that can be loaded into registers.
type Field struct {
	text string
	size int // bytes in registers, padded
	load func(reg uint32) []expr.Any
}

// Family is IPv4 or IPv6: what differs between them.
type Family struct {
	Name         string // "ip" or "ip6", as in nft's syntax
	Addr         Type
	proto        byte
	source, dest uint32 // offsets of the addresses in the header
}

// The families.
var (
	IP4 = Family{"ip", IPv4, unix.NFPROTO_IPV4, 12, 16}
	IP6 = Family{"ip6", IPv6, unix.NFPROTO_IPV6, 8, 24}
)

// FamilyOf returns the family of a.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IP4
	}
	return IP6
}

func header(text string, base expr.PayloadBase, offset, size uint32) Field {
	return Field{text, int(size+3) &^ 3, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: size}}
	}}
}

// Saddr is the source address.
func (f Family) Saddr() Field {
	return header(f.Name+" saddr", expr.PayloadBaseNetworkHeader, f.source, uint32(f.Addr.size))
}

// Daddr is the destination address.
func (f Family) Daddr() Field {
	return header(f.Name+" daddr", expr.PayloadBaseNetworkHeader, f.dest, uint32(f.Addr.size))
}

// Dport is the destination port of TCP, UDP or SCTP.
func Dport() Field { return header("th dport", expr.PayloadBaseTransportHeader, 2, 2) }

// L4Proto is the transport protocol.
func L4Proto() Field {
	return Field{"meta l4proto", 4, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}}
	}}
}

// Random is a random number in [offset, offset+mod).
func Random(mod, offset uint32) Field {
	return Field{fmt.Sprintf("numgen random mod %d offset %d", mod, offset), 4, func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Numgen{Register: reg, Modulus: mod, Offset: offset, Type: unix.NFT_NG_RANDOM}}
	}}
}

// Const is a constant of the given type; value is as for Pack.
func Const(t Type, value any) Field {
	packed := Pack(value)
	return Field{fieldsText([]Type{t}, packed), len(packed), func(reg uint32) []expr.Any {
		return []expr.Any{&expr.Immediate{Register: reg, Data: []byte(packed)}}
	}}
}

// Load puts fields into consecutive registers and returns the first register
// after them.
func Load(reg uint32, fields ...Field) (exprs []expr.Any, text string, next uint32) {
	texts := make([]string, len(fields))
	for i, f := range fields {
		exprs = append(exprs, f.load(reg)...)
		texts[i] = f.text
		reg += uint32(f.size / 4)
	}
	return exprs, strings.Join(texts, " . "), reg
}

// FirstReg is where Load usually starts.
const FirstReg uint32 = firstReg

// VMap looks the fields up in a map of verdicts.
func VMap(set string, fields ...Field) Stmt {
	exprs, text, _ := Load(firstReg, fields...)
	return Stmt{text + " vmap @" + set, append(exprs, &expr.Lookup{SourceRegister: firstReg, SetName: set,
		DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true})}
}

// In matches when the fields are in a set.
func In(set string, fields ...Field) Stmt {
	exprs, text, _ := Load(firstReg, fields...)
	return Stmt{text + " @" + set, append(exprs, &expr.Lookup{SourceRegister: firstReg, SetName: set})}
}

// DNATMap rewrites the destination to what the map (of address and port) has
// for the fields.
func (f Family) DNATMap(set string, fields ...Field) Stmt {
	exprs, text, next := Load(firstReg, fields...)
	exprs = append(exprs, &expr.Lookup{SourceRegister: firstReg, SetName: set, DestRegister: next, IsDestRegSet: true})
	return Stmt{fmt.Sprintf("dnat %s to %s map @%s", f.Name, text, set), append(exprs, f.DNAT(next))}
}

// DNAT rewrites the destination to the address at reg and the port after it.
func (f Family) DNAT(reg uint32) expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg,
		RegProtoMin: reg + uint32(f.Addr.size/4), Specified: true}
}

// Is matches packets of the family.
func (f Family) Is() Stmt {
	name := "ipv4"
	if f.proto == unix.NFPROTO_IPV6 {
		name = "ipv6"
	}
	return Stmt{"meta nfproto " + name, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.proto}}}}
}

// Proto4 matches a transport protocol.
func Proto4(p uint8) Stmt {
	return Stmt{"meta l4proto " + ProtoName(p), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}}
}

// From matches a source address in p; To a destination address; NotFrom and
// NotTo the others.
func From(p netip.Prefix) Stmt { return within(FamilyOf(p.Addr()).Saddr(), p, false) }

// NotFrom matches a source address outside p.
func NotFrom(p netip.Prefix) Stmt { return within(FamilyOf(p.Addr()).Saddr(), p, true) }

// To matches a destination address in p.
func To(p netip.Prefix) Stmt { return within(FamilyOf(p.Addr()).Daddr(), p, false) }

// NotTo matches a destination address outside p.
func NotTo(p netip.Prefix) Stmt { return within(FamilyOf(p.Addr()).Daddr(), p, true) }

func within(f Field, p netip.Prefix, not bool) Stmt {
	op, sign := expr.CmpOpEq, ""
	if not {
		op, sign = expr.CmpOpNeq, "!= "
	}
	what := p.Masked().String()
	if p.IsSingleIP() {
		what = p.Addr().String()
	}
	exprs := f.load(1)
	if !p.IsSingleIP() {
		mask := make([]byte, p.Addr().BitLen()/8)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		exprs = append(exprs, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)),
			Mask: mask, Xor: make([]byte, len(mask))})
	}
	exprs = append(exprs, &expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()})
	return Stmt{fmt.Sprintf("%s %s%s", f.text, sign, what), exprs}
}

// FromLocal matches a source address of this host, ToLocal a destination.
func FromLocal() Stmt {
	return fib("fib saddr type local", &expr.Fib{Register: 1, ResultADDRTYPE: true, FlagSADDR: true})
}

// ToLocal matches a destination address of this host.
func ToLocal() Stmt {
	return fib("fib daddr type local", &expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true})
}

// NoWayBack matches packets whose source is not led to by the link that they came in by: addresses that are not the sender's.
func NoWayBack() Stmt {
	return Stmt{"fib saddr . iif oif missing", []expr.Any{&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)}}}
}

func fib(text string, f *expr.Fib) Stmt {
	return Stmt{text, []expr.Any{f,
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)}}}
}

// InLink matches packets that came in by a link whose name starts with prefix.
func InLink(prefix string) Stmt {
	return Stmt{fmt.Sprintf("iifname \"%s*\"", prefix), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(prefix)}}}
}

// New matches packets that open a connection.
func New() Stmt {
	bit := binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW)
	return Stmt{"ct state new", []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bit, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}}
}

// Stray matches packets that are not simply of a connection that conntrack follows: those that it finds invalid, those that it was told
// not to follow, and those that are about a connection, such as errors, which anybody may send.
func Stray() Stmt {
	bits := binary.NativeEndian.AppendUint32(nil, expr.CtStateBitINVALID|expr.CtStateBitRELATED|expr.CtStateBitUNTRACKED)
	return Stmt{"ct state invalid,related,untracked", []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}}
}

// The directions of a connection, as conntrack numbers them.
const (
	original byte = iota
	reply
)

// ctLoad loads a part of a connection's addresses, some of which the library cannot spell with their direction. What it embeds is nil: encode
// knows it.
type ctLoad struct {
	expr.Any
	key, reg  uint32
	direction byte
}

func (c *ctLoad) encode(b *attrs) {
	b.text(unix.NFTA_EXPR_NAME, "ct")
	b.nest(unix.NFTA_EXPR_DATA, func(a *attrs) {
		a.u32(unix.NFTA_CT_KEY, c.key)
		a.u32(unix.NFTA_CT_DREG, c.reg)
		a.put(unix.NFTA_CT_DIRECTION, []byte{c.direction})
	})
}

// tracked is what conntrack knows of the connection that a packet belongs to: the same for its packets of both directions, and for
// errors about it.
func tracked(text string, key uint32, direction byte, size int) Field {
	return Field{text, size, func(reg uint32) []expr.Any { return []expr.Any{&ctLoad{key: key, direction: direction, reg: reg}} }}
}

// address is tracked of an address.
func (f Family) address(side string, four, six uint32, direction byte) Field {
	key := four
	if f.proto == unix.NFPROTO_IPV6 {
		key = six
	}
	return tracked(fmt.Sprintf(side, f.Name), key, direction, f.Addr.size)
}

// CtClient is the address that opened the connection, before its source is rewritten; CtServer and CtServerPort are where it leads,
// after its destination is rewritten; CtTarget and CtTargetPort are where it was opened to. A packet without a connection, or with one
// of another family, matches no rule with the addresses.
func (f Family) CtClient() Field {
	return f.address("ct original %s saddr", unix.NFT_CT_SRC_IP, unix.NFT_CT_SRC_IP6, original)
}

// CtServer is described at CtClient.
func (f Family) CtServer() Field {
	return f.address("ct reply %s saddr", unix.NFT_CT_SRC_IP, unix.NFT_CT_SRC_IP6, reply)
}

// CtTarget is described at CtClient.
func (f Family) CtTarget() Field {
	return f.address("ct original %s daddr", unix.NFT_CT_DST_IP, unix.NFT_CT_DST_IP6, original)
}

// CtServerPort is described at CtClient.
func CtServerPort() Field { return tracked("ct reply proto-src", unix.NFT_CT_PROTO_SRC, reply, 4) }

// CtTargetPort is described at CtClient.
func CtTargetPort() Field {
	return tracked("ct original proto-dst", unix.NFT_CT_PROTO_DST, original, 4)
}

// CtProto is the transport protocol of the connection.
func CtProto() Field { return tracked("ct protocol", unix.NFT_CT_PROTOCOL, original, 4) }

// CtIs matches connections of a transport protocol.
func CtIs(proto uint8) Stmt {
	return Stmt{"ct protocol " + ProtoName(proto), append(CtProto().load(1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}})}
}

// SetMark sets the bits of mark on the packet.
func SetMark(mark uint32) Stmt {
	return Stmt{fmt.Sprintf("meta mark set mark or %#x", mark), marked(
		binary.NativeEndian.AppendUint32(nil, ^mark), binary.NativeEndian.AppendUint32(nil, mark))}
}

// ClearMark clears the bits of mark.
func ClearMark(mark uint32) Stmt {
	return Stmt{fmt.Sprintf("meta mark set mark and %#x", ^mark), marked(
		binary.NativeEndian.AppendUint32(nil, ^mark), make([]byte, 4))}
}

func marked(mask, xor []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: xor},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}}
}

// HasMark matches packets with a bit of mark set.
func HasMark(mark uint32) Stmt {
	return Stmt{fmt.Sprintf("meta mark and %#x != 0", mark), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, mark), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}}
}

// Masquerade rewrites the source to the address of the outgoing link.
func Masquerade() Stmt {
	return Stmt{"masquerade fully-random", []expr.Any{&expr.Masq{FullyRandom: true}}}
}

// Goto and its kin are verdicts.
func Goto(chain string) Stmt {
	return Stmt{"goto " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}}
}

// Accept ends the packet's way through this chain's hook.
func Accept() Stmt { return Stmt{"accept", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}} }

// Return goes on after the jump that led here.
func Return() Stmt { return Stmt{"return", []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}} }

// Jump goes through another chain, and on when that returns.
func Jump(chain string) Stmt {
	return Stmt{"jump " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}}
}

// Drop drops the packet.
func Drop() Stmt { return Stmt{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}} }

// RejectTCP answers with a TCP reset.
func RejectTCP() Stmt {
	return Stmt{"reject with tcp reset", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
}

// Reject answers with ICMP port unreachable.
func Reject() Stmt {
	return Stmt{"reject with icmpx port-unreachable", []expr.Any{
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}}
}

// Remember adds, or refreshes, the element with the key in the registers from
// key on and the data in those from data on; it lasts for timeout.
func Remember(set string, key, data uint32, timeout time.Duration) expr.Any {
	return &expr.Dynset{SetName: set, SrcRegKey: key, SrcRegData: data, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: timeout}
}

// Forget deletes the element with the key in the registers from key on.
func Forget(set string, key, data uint32) expr.Any {
	return &expr.Dynset{SetName: set, SrcRegKey: key, SrcRegData: data, Operation: opDelete}
}

// opDelete is NFT_DYNSET_OP_DELETE.
const opDelete = 2

// encode returns the rule's expressions as attributes.
func (r Rule) encode() ([]byte, error) {
	var b attrs
	for _, s := range r {
		for _, e := range s.Exprs {
			if c, ok := e.(*ctLoad); ok {
				b.nest(unix.NFTA_LIST_ELEM, c.encode)
				continue
			}
			m, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				return nil, fmt.Errorf("encode rule %q: %w", r.Text(), err)
			}
			b.put(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, m)
		}
	}
	if len(b) > math.MaxUint16-4 {
		return nil, fmt.Errorf("encode rule %q: too long", r.Text())
	}
	return b, nil
}
