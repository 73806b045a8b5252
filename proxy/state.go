package proxy

import (
	"maps"
	"slices"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/linux/nft"
)

// state is the wanted table and what each Service has in it, so that a change of one
// Service costs what that Service is worth.
type state struct {
	f     Facts
	table *nft.Table
	parts map[api.Key]*nft.Table
	// elems and chains count the parts that have an element or a chain.
	elems  map[string]map[string]int
	chains map[string]int
	// disputed says that two Services claim one key of a map. While it is so,
	// every change rebuilds the table, where the first by name wins.
	disputed bool
}

func newState(f Facts) *state {
	s := &state{f: f, parts: map[api.Key]*nft.Table{}}
	s.reset()
	return s
}

// reset begins the table anew.
func (s *state) reset() {
	s.table, s.disputed = skeleton(s.f), false
	s.elems, s.chains = map[string]map[string]int{}, map[string]int{}
	for name := range s.table.Sets {
		s.elems[name] = map[string]int{}
	}
}

// rebuild makes the table from the parts, in the order of the Services' names.
func (s *state) rebuild() {
	s.reset()
	for _, k := range slices.SortedFunc(maps.Keys(s.parts), api.Key.Compare) {
		s.add(s.parts[k], nil)
	}
}

// replace puts next in the place of a Service's part; nil removes it. It returns
// the difference as two tables for nft's Update, or ok false when the whole table has to be
// rebuilt instead; then the parts are right already.
func (s *state) replace(k api.Key, next *nft.Table) (old, new_ *nft.Table, ok bool) {
	had := s.parts[k]
	if delete(s.parts, k); next != nil {
		s.parts[k] = next
	}
	if s.disputed {
		return nil, nil, false
	}
	old, new_ = nft.NewTable(s.f.Table), nft.NewTable(s.f.Table)
	sets(old)
	sets(new_)
	if had != nil {
		s.remove(had, old)
	}
	if next != nil {
		s.add(next, new_)
	}
	// What went and came again is in both: Update sees that it stayed.
	return old, new_, !s.disputed
}

// add counts the elements and chains of p; those that are new go to the table and to
// news, if that is not nil.
func (s *state) add(p *nft.Table, news *nft.Table) {
	for name, set := range p.Sets {
		for k, v := range set.Elems {
			s.elems[name][k]++
			if s.elems[name][k] == 1 {
				s.table.Sets[name].Elems[k] = v
				if news != nil {
					news.Sets[name].Elems[k] = v
				}
			} else if s.table.Sets[name].Elems[k] != v {
				s.disputed = true
			}
		}
	}
	for name, c := range p.Chains {
		s.chains[name]++
		if s.chains[name] == 1 {
			s.table.Chains[name] = c
			if news != nil {
				news.Chains[name] = c
			}
		}
	}
}

// remove is the reverse of add; what is gone goes to olds.
func (s *state) remove(p *nft.Table, olds *nft.Table) {
	for name, set := range p.Sets {
		for k, v := range set.Elems {
			if s.elems[name][k]--; s.elems[name][k] == 0 {
				delete(s.elems[name], k)
				delete(s.table.Sets[name].Elems, k)
				olds.Sets[name].Elems[k] = v
			}
		}
	}
	for name, c := range p.Chains {
		if s.chains[name]--; s.chains[name] == 0 {
			delete(s.chains, name)
			delete(s.table.Chains, name)
			olds.Chains[name] = c
		}
	}
}
