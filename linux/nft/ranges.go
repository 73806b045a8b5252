package nft

import (
	"cmp"
	"net/netip"
	"slices"
)

// Range is the addresses from First to Last, both included and of one family.
type Range struct{ First, Last netip.Addr }

// RangeOf is what the prefix covers.
func RangeOf(p netip.Prefix) Range {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < p.Addr().BitLen(); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return Range{p.Addr(), last}
}

// Except returns r without what the others cover.
func (r Range) Except(others []Range) []Range {
	left := []Range{r}
	for _, o := range others {
		var next []Range
		for _, l := range left {
			if o.Last.Less(l.First) || l.Last.Less(o.First) {
				next = append(next, l)
				continue
			}
			if l.First.Less(o.First) {
				next = append(next, Range{l.First, o.First.Prev()})
			}
			if o.Last.Less(l.Last) {
				next = append(next, Range{o.Last.Next(), l.Last})
			}
		}
		left = next
	}
	return left
}

// Merge sorts ranges and unites those that overlap or touch, which a set with Ranges cannot hold side by side.
func Merge(rs []Range) []Range {
	rs = slices.SortedFunc(slices.Values(rs), func(a, b Range) int { return a.First.Compare(b.First) })
	var out []Range
	for _, r := range rs {
		if n := len(out); n > 0 {
			if end := out[n-1].Last.Next(); !end.IsValid() || !end.Less(r.First) {
				if out[n-1].Last.Less(r.Last) {
					out[n-1].Last = r.Last
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// Ports is the port numbers from First to Last, both included.
type Ports struct{ First, Last uint16 }

// MergePorts is Merge for port numbers.
func MergePorts(ps []Ports) []Ports {
	ps = slices.SortedFunc(slices.Values(ps), func(a, b Ports) int { return cmp.Compare(a.First, b.First) })
	var out []Ports
	for _, p := range ps {
		if n := len(out); n > 0 && int(p.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, p.Last)
			continue
		}
		out = append(out, p)
	}
	return out
}
