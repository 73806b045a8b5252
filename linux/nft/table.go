// Package nft brings one nftables table of the inet family to a desired state: it
// is the kernel, thinly, and knows nothing of Services or pods. It speaks netlink
// itself, since a table of tens of thousands of map elements has to be one message
// batch that is built in milliseconds; expressions are google/nftables'.
//
// Vocabulary:
//
//	Table   a whole table as a value: chains with rules, and sets with elements.
//	        A map is a Set with Data or with Verdicts.
//	Rule    statements, each with its text in nft(8)'s syntax. The text is what
//	        goldens show and what rules are compared by, so equal text must mean
//	        equal expressions.
//	Batch   messages that the kernel takes in one transaction, or refuses whole.
//
// How it is used:
//
//	have, err := conn.Read(name)        // the kernel's state, nil if there is none
//	err = conn.Commit(Diff(have, want)) // one transaction; no change, no message
//
// Diff touches only what differs, in the order that the kernel's reference counts
// want: new sets, new chains, rules, elements, then what goes. Elements of a set with the Dynamic
// flag belong to the rules that add them: they are never read, compared or deleted.
package nft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Table is a table of the inet family.
type Table struct {
	Name   string
	Chains map[string]*Chain
	Sets   map[string]*Set
}

// NewTable returns an empty table.
func NewTable(name string) *Table {
	return &Table{Name: name, Chains: map[string]*Chain{}, Sets: map[string]*Set{}}
}

// Chain is a list of rules; one with a Hook is a base chain.
type Chain struct {
	Hook  *Hook
	Rules []Rule
}

// Hook is where a base chain is called from. Its policy is accept.
type Hook struct {
	Type     string // "nat", "filter" or "route"
	Point    Point
	Priority int32
}

// Point is a netfilter hook.
type Point uint32

// The netfilter hooks.
const (
	Prerouting Point = iota
	Input
	Forward
	Output
	Postrouting
)

func (p Point) String() string {
	return [...]string{"prerouting", "input", "forward", "output", "postrouting"}[p]
}

// Type is the type of one field of a set's key or data.
type Type struct {
	Name string
	id   uint32 // nft's own number, so that nft(8) prints elements readably
	size int    // in bytes, before padding to 4
}

// The field types in use.
var (
	IPv4    = Type{"ipv4_addr", 7, 4}
	IPv6    = Type{"ipv6_addr", 8, 16}
	Proto   = Type{"inet_proto", 12, 1}
	Service = Type{"inet_service", 13, 2}
	Number  = Type{"mark", 19, 4} // a number in host order
)

// Set is a set, or a map when it has Data or Verdicts.
type Set struct {
	Key      []Type
	Data     []Type
	Verdicts bool
	// Dynamic says that rules add the elements, which expire after Timeout.
	Dynamic bool
	Timeout time.Duration
	// Size limits the number of elements; 0 is no limit. Needed for Dynamic.
	Size uint32
	// Ranges says that an element is all values from a first to a last one, both in its key: Pack(first, last). The key is one field in
	// the order of the network, the set no map. Ranges must not touch each other: see Merge.
	Ranges bool
	// Elems maps keys to data, both as made by Pack; a verdict is its text, for
	// example "goto lb-3" or "drop"; an element of a plain set has "".
	Elems map[string]string
}

// IsMap reports whether s maps keys to something.
func (s *Set) IsMap() bool { return s.Verdicts || len(s.Data) > 0 }

// same reports whether a and b differ in elements only.
func (s *Set) same(o *Set) bool {
	return slices.Equal(s.Key, o.Key) && slices.Equal(s.Data, o.Data) && s.Verdicts == o.Verdicts &&
		s.Dynamic == o.Dynamic && s.Timeout == o.Timeout && s.Size == o.Size && s.Ranges == o.Ranges
}

// Width returns the bytes that fields take in registers.
func Width(ts []Type) int {
	n := 0
	for _, t := range ts {
		n += (t.size + 3) &^ 3
	}
	return n
}

// keyLen is the length of the set's keys for the kernel, which takes a single field as it is where it compares it.
func (s *Set) keyLen() int {
	if s.Ranges {
		return s.Key[0].size
	}
	return Width(s.Key)
}

// typeID is the concatenation of the fields' numbers, six bits each.
func typeID(ts []Type) uint32 {
	var id uint32
	for _, t := range ts {
		id = id<<6 | t.id
	}
	return id
}

// Pack returns fields as they lie in registers: each padded to four bytes. A
// field is a netip.Addr, a uint8 (Proto), a uint16 (Service) or a uint32 (Number).
func Pack(fields ...any) string {
	b := make([]byte, 0, 48)
	for _, f := range fields {
		switch f := f.(type) {
		case netip.Addr:
			b = append(b, f.AsSlice()...)
		case uint8:
			b = append(b, f, 0, 0, 0)
		case uint16:
			b = append(b, byte(f>>8), byte(f), 0, 0)
		case uint32:
			b = binary.NativeEndian.AppendUint32(b, f)
		}
	}
	return string(b)
}

// Unpack is the reverse of Pack for fields of types ts.
func Unpack(ts []Type, packed string) ([]any, error) {
	if len(packed) != Width(ts) {
		return nil, fmt.Errorf("unpack %d bytes as %s", len(packed), typeNames(ts))
	}
	b := []byte(packed)
	fields := make([]any, 0, len(ts))
	for _, t := range ts {
		switch t {
		case IPv4, IPv6:
			a, _ := netip.AddrFromSlice(b[:t.size])
			fields = append(fields, a)
		case Proto:
			fields = append(fields, b[0])
		case Service:
			fields = append(fields, binary.BigEndian.Uint16(b))
		default:
			fields = append(fields, binary.NativeEndian.Uint32(b))
		}
		b = b[Width([]Type{t}):]
	}
	return fields, nil
}

// String prints the table much as nft(8) does, chains and sets by name and
// elements by key, so that equal tables print equally.
func (t *Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", t.Name)
	for _, name := range slices.Sorted(maps.Keys(t.Sets)) {
		t.Sets[name].print(&b, name)
	}
	for _, name := range slices.Sorted(maps.Keys(t.Chains)) {
		c := t.Chains[name]
		fmt.Fprintf(&b, "chain %s {\n", name)
		if h := c.Hook; h != nil {
			fmt.Fprintf(&b, "\ttype %s hook %s priority %d\n", h.Type, h.Point, h.Priority)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t%s\n", r.Text())
		}
		b.WriteString("}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func (s *Set) print(b *strings.Builder, name string) {
	kind, of := "set", typeNames(s.Key)
	if s.IsMap() {
		kind = "map"
		if s.Verdicts {
			of += " : verdict"
		} else {
			of += " : " + typeNames(s.Data)
		}
	}
	fmt.Fprintf(b, "%s %s {\n\ttype %s\n", kind, name, of)
	if s.Dynamic {
		fmt.Fprintf(b, "\tsize %d\n\tflags dynamic,timeout\n", s.Size)
	}
	if s.Ranges {
		b.WriteString("\tflags interval\n")
	}
	for _, k := range slices.Sorted(maps.Keys(s.Elems)) {
		fmt.Fprintf(b, "\t%s\n", s.elem(k))
	}
	b.WriteString("}\n")
}

// elem prints one element.
func (s *Set) elem(key string) string {
	if s.Ranges {
		at := len(key) / 2
		return fieldsText(s.Key, key[:at]) + "-" + fieldsText(s.Key, key[at:])
	}
	text := fieldsText(s.Key, key)
	switch data := s.Elems[key]; {
	case s.Verdicts:
		return text + " : " + data
	case len(s.Data) > 0:
		return text + " : " + fieldsText(s.Data, data)
	}
	return text
}

func typeNames(ts []Type) string {
	names := make([]string, len(ts))
	for i, t := range ts {
		names[i] = t.Name
	}
	return strings.Join(names, " . ")
}

func fieldsText(ts []Type, packed string) string {
	fields, err := Unpack(ts, packed)
	if err != nil {
		return err.Error()
	}
	texts := make([]string, len(fields))
	for i, f := range fields {
		if p, ok := f.(uint8); ok {
			texts[i] = ProtoName(p)
			continue
		}
		texts[i] = fmt.Sprint(f)
	}
	return strings.Join(texts, " . ")
}

// The transport protocols that Services know.
const (
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

// ProtoName is nft's name of an IP protocol.
func ProtoName(p uint8) string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}
