package netpol

import (
	"maps"

	"github.com/yare-dev/yare/linux/nft"
)

// edit changes a table and remembers what was there before, so that a change costs what it is worth.
type edit struct {
	table   *nft.Table
	sets    map[string]*nft.Set          // as they were, without elements; nil for those that were not there
	elems   map[string]map[string]string // of sets that were there: what touched elements were; absent ones are in touched only
	touched map[string]map[string]bool
	chains  map[string]*nft.Chain // as they were, nil for those that were not there
}

func newEdit(t *nft.Table) *edit {
	return &edit{table: t, sets: map[string]*nft.Set{}, elems: map[string]map[string]string{}, touched: map[string]map[string]bool{},
		chains: map[string]*nft.Chain{}}
}

// touchSet remembers the definition of a set.
func (e *edit) touchSet(name string) {
	if _, known := e.sets[name]; known {
		return
	}
	e.sets[name], e.elems[name], e.touched[name] = empty(e.table.Sets[name]), map[string]string{}, map[string]bool{}
}

// empty is a set's definition.
func empty(s *nft.Set) *nft.Set {
	if s == nil {
		return nil
	}
	c := *s
	c.Elems = map[string]string{}
	return &c
}

// put sets an element, or takes it away when there is none.
func (e *edit) put(set, key, value string, there bool) {
	elems := e.table.Sets[set].Elems
	was, had := elems[key]
	if had == there && was == value {
		return
	}
	e.touchSet(set)
	if !e.touched[set][key] {
		e.touched[set][key] = true
		if had {
			e.elems[set][key] = was
		}
	}
	if there {
		elems[key] = value
	} else {
		delete(elems, key)
	}
}

func (e *edit) addSet(name string, s *nft.Set) {
	e.touchSet(name)
	e.table.Sets[name] = s
}

func (e *edit) removeSet(name string) {
	e.touchSet(name)
	delete(e.table.Sets, name)
}

func (e *edit) putChain(name string, c *nft.Chain) {
	if _, known := e.chains[name]; !known {
		e.chains[name] = e.table.Chains[name]
	}
	if c == nil {
		delete(e.table.Chains, name)
	} else {
		e.table.Chains[name] = c
	}
}

// changes returns what was touched, as it was and as it is, for nft's Update.
func (e *edit) changes() (old, next *nft.Table) {
	old, next = nft.NewTable(e.table.Name), nft.NewTable(e.table.Name)
	for name, was := range e.sets {
		is := empty(e.table.Sets[name])
		if was != nil {
			was.Elems = e.elems[name]
			old.Sets[name] = was
		}
		if is == nil {
			continue
		}
		next.Sets[name] = is
		if was == nil {
			maps.Copy(is.Elems, e.table.Sets[name].Elems)
			continue
		}
		for key := range e.touched[name] {
			if v, there := e.table.Sets[name].Elems[key]; there {
				is.Elems[key] = v
			}
		}
	}
	for name, was := range e.chains {
		if was != nil {
			old.Chains[name] = was
		}
		if is := e.table.Chains[name]; is != nil {
			next.Chains[name] = is
		}
	}
	return old, next
}
