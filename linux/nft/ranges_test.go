package nft

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func ranges(t *testing.T, text string) (rs []Range) {
	t.Helper()
	for _, s := range strings.Fields(text) {
		if p, err := netip.ParsePrefix(s); err == nil {
			rs = append(rs, RangeOf(p))
			continue
		}
		first, last, _ := strings.Cut(s, "-")
		rs = append(rs, Range{addr(first), addr(last)})
	}
	return rs
}

func TestRangeArithmetic(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, of, except, want string }{
		{"nothing", "10.0.0.0/8", "", "10.0.0.0-10.255.255.255"},
		{"not masked", "10.1.2.3/16", "", "10.1.0.0-10.1.255.255"},
		{"a hole", "10.0.0.0/24", "10.0.0.64/26", "10.0.0.0-10.0.0.63 10.0.0.128-10.0.0.255"},
		{"both ends", "10.0.0.0/24", "10.0.0.0/26 10.0.0.192/26", "10.0.0.64-10.0.0.191"},
		{"all of it", "10.0.0.0/24", "10.0.0.0/23", ""},
		{"elsewhere", "10.0.0.0/24", "10.0.1.0/24", "10.0.0.0-10.0.0.255"},
		{"overlapping holes", "0.0.0.0/0", "10.0.0.0/8 10.1.0.0/16 255.0.0.0/8", "0.0.0.0-9.255.255.255 11.0.0.0-254.255.255.255"},
		{"touching are one", "10.0.1.0/24 10.0.0.0/24", "", "10.0.0.0-10.0.1.255"},
		{"contained", "10.0.0.0/8 10.1.0.0/16 10.255.255.255/32", "", "10.0.0.0-10.255.255.255"},
		{"the last address", "255.255.255.255/32 255.255.255.254/32 0.0.0.0/32", "", "0.0.0.0-0.0.0.0 255.255.255.254-255.255.255.255"},
	}
	for _, test := range tests {
		var got []Range
		for _, r := range ranges(t, test.of) {
			got = append(got, r.Except(ranges(t, test.except))...)
		}
		if got, want := fmt.Sprint(Merge(got)), fmt.Sprint(ranges(t, test.want)); got != want {
			t.Errorf("%s: %s, want %s", test.name, got, want)
		}
	}
}

// TestRangeSets takes a set of ranges through changes and reads each back.
func TestRangeSets(t *testing.T) {
	t.Parallel()
	table := func(text string) *Table {
		t := NewTable("a")
		s := &Set{Key: []Type{IPv4}, Ranges: true, Elems: map[string]string{}}
		for _, r := range merged(text) {
			s.Elems[Pack(r.First, r.Last)] = ""
		}
		t.Sets["blocks"] = s
		numbers := map[string]string{}
		for _, p := range MergePorts([]Ports{{443, 443}, {40000, 65535}, {30000, 50000}, {0, 79}, {80, 80}}) {
			numbers[Pack(p.First, p.Last)] = ""
		}
		t.Sets["numbers"] = &Set{Key: []Type{Service}, Ranges: true, Elems: numbers}
		t.Sets["ports"] = &Set{Key: []Type{IPv4, Proto, Service}, Elems: map[string]string{Pack(addr("192.0.2.1"), TCP, uint16(80)): ""}}
		t.Chains["forward"] = &Chain{Hook: &Hook{"filter", Forward, 0}, Rules: []Rule{
			{Stray(), Accept()}, {IP4.Is(), In("blocks", IP4.CtClient()), CtIs(TCP), In("numbers", CtServerPort()), Accept()},
			{In("blocks", IP4.CtTarget()), Return()},
			{In("ports", IP4.CtServer(), CtProto(), CtServerPort()), Return()},
			{In("ports", IP4.CtTarget(), CtProto(), CtTargetPort()), Return()},
		}}
		return t
	}
	inNamespace(t, func(path string, c *Conn) {
		for _, text := range []string{
			"10.0.0.0/8 192.0.2.1/32", "10.0.0.0/9 192.0.2.0/31", "0.0.0.0/0", "0.0.0.0/32 255.255.255.255/32",
			"", "1.0.0.0/8 3.0.0.0/8 5.0.0.0/8", "2.0.0.0/8 4.0.0.0/8",
		} {
			have, err := c.Read("a")
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Commit(Diff(have, table(text))); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			after, err := c.Read("a")
			if err != nil {
				t.Fatal(err)
			}
			if b := Diff(after, table(text)); !b.Empty() {
				t.Errorf("%q: %d messages left to do\n%v\n%s", text, b.Messages(), after, nftList(t, path))
			}
		}
		listed := nftList(t, path)
		for _, want := range []string{"2.0.0.0/8, 4.0.0.0/8", "ct original ip saddr @blocks ct protocol tcp ct reply proto-src @numbers accept", "elements = { 0-80, 443, 30000-65535 }",
			"ct original ip daddr @blocks return", "ct reply ip saddr . ct protocol . ct reply proto-src @ports return",
			"ct original ip daddr . ct protocol . ct original proto-dst @ports return", "ct state invalid,related,untracked accept"} {
			if listed != "" && !strings.Contains(listed, want) {
				t.Errorf("nft does not print %q in\n%s", want, listed)
			}
		}
	})
}

// merged are the ranges of prefixes, merged.
func merged(text string) []Range {
	var rs []Range
	for _, s := range strings.Fields(text) {
		rs = append(rs, RangeOf(netip.MustParsePrefix(s)))
	}
	return Merge(rs)
}
