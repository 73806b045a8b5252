package nft

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Diff returns the transaction that turns have into want. A nil have is a table
// that does not exist; a nil want is one that must not.
func Diff(have, want *Table) *Batch {
	b := &Batch{}
	switch {
	case want == nil && have == nil:
		return b
	case want == nil:
		b.deleteTable(have.Name)
		return b
	case have == nil || !compatible(have, want):
		return Replace(want)
	}
	b.update(have, want)
	return b
}

// Replace returns the transaction that makes want from nothing, whatever is there
// under its name.
func Replace(want *Table) *Batch {
	b := &Batch{}
	b.addTable(want.Name)
	b.deleteTable(want.Name)
	b.addTable(want.Name)
	b.update(NewTable(want.Name), want)
	return b
}

// Update adds to the transaction what takes a part of a table from old to next,
// without a look at the rest of the table: what neither mentions stays. Both must name the same
// sets, which must exist; chains that next refers to must exist or be in next.
func (b *Batch) Update(old, next *Table) { b.update(old, next) }

// compatible reports whether the sets and base chains of both tables that have
// the same name have the same definition. Those cannot be changed in place.
func compatible(have, want *Table) bool {
	for name, s := range want.Sets {
		if h := have.Sets[name]; h != nil && !h.same(s) {
			return false
		}
	}
	for name, c := range want.Chains {
		h := have.Chains[name]
		if h == nil {
			continue
		}
		if (h.Hook == nil) != (c.Hook == nil) || h.Hook != nil && *h.Hook != *c.Hook {
			return false
		}
	}
	return true
}

// update writes the messages in the order of the package comment.
func (b *Batch) update(have, want *Table) {
	name := want.Name
	for _, set := range slices.Sorted(maps.Keys(want.Sets)) {
		if have.Sets[set] == nil {
			b.addSet(name, set, want.Sets[set])
		}
	}
	chains := slices.Sorted(maps.Keys(want.Chains))
	for _, chain := range chains {
		if have.Chains[chain] == nil {
			b.addChain(name, chain, want.Chains[chain])
		}
	}
	for _, chain := range chains {
		h := have.Chains[chain]
		if h != nil && slices.EqualFunc(h.Rules, want.Chains[chain].Rules, sameRule) {
			continue
		}
		if h != nil && len(h.Rules) > 0 {
			b.flushChain(name, chain)
		}
		for _, r := range want.Chains[chain].Rules {
			b.addRule(name, chain, r)
		}
	}
	for _, set := range slices.Sorted(maps.Keys(want.Sets)) {
		b.updateElements(name, set, have.Sets[set], want.Sets[set])
	}
	b.removeRest(have, want)
}

func (b *Batch) updateElements(table, name string, have, want *Set) {
	if want.Dynamic {
		return
	}
	var add, del []string
	var old map[string]string
	if have != nil {
		old = have.Elems
	}
	for k, v := range want.Elems {
		if h, ok := old[k]; !ok {
			add = append(add, k)
		} else if h != v {
			add, del = append(add, k), append(del, k)
		}
	}
	for k := range old {
		if _, ok := want.Elems[k]; !ok {
			del = append(del, k)
		}
	}
	slices.Sort(add)
	slices.Sort(del)
	b.elements(unix.NFT_MSG_DELSETELEM, table, name, want, del, nil)
	b.elements(unix.NFT_MSG_NEWSETELEM, table, name, want, add, want.Elems)
}

// removeRest removes the chains and sets that are in have only. Rules go first,
// then what they may refer to, and chains before the sets since a chain must be empty of references.
func (b *Batch) removeRest(have, want *Table) {
	var chains, sets []string
	for name := range have.Chains {
		if want.Chains[name] == nil {
			chains = append(chains, name)
		}
	}
	for name := range have.Sets {
		if want.Sets[name] == nil {
			sets = append(sets, name)
		}
	}
	slices.Sort(chains)
	slices.Sort(sets)
	for _, c := range chains {
		if len(have.Chains[c].Rules) > 0 {
			b.flushChain(have.Name, c)
		}
	}
	for _, s := range sets {
		b.deleteSet(have.Name, s)
	}
	for _, c := range chains {
		b.deleteChain(have.Name, c)
	}
}

// A rule that Read found has one statement, its digest with this prefix.
const readRule = "#"

// sameRule compares a rule that was read or applied with one that is wanted.
func sameRule(have, want Rule) bool {
	h := have.Text()
	if id, read := strings.CutPrefix(h, readRule); read {
		exprs, err := want.encode()
		return err == nil && id == hex.EncodeToString(digest(exprs))
	}
	return h == want.Text()
}

// digest identifies a rule's expressions; it is kept with the rule in the kernel.
func digest(exprs []byte) []byte {
	sum := sha256.Sum256(exprs)
	return sum[:16]
}

// userdataDigest is a type of rule user data that nft(8) does not know, and skips.
const userdataDigest = 200

// userdata wraps a digest in the form that nft(8) expects of user data.
func userdata(digest []byte) []byte {
	return append([]byte{userdataDigest, byte(len(digest))}, digest...)
}

// digestOf is the reverse of userdata; it is empty for somebody else's rule.
func digestOf(data []byte) string {
	d, ok := bytes.CutPrefix(data, []byte{userdataDigest, 16})
	if !ok {
		return ""
	}
	return hex.EncodeToString(d)
}
