package netpol

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/yare-dev/yare/linux/nft"
)

// class is what pods may do in one direction: a chain, and the sets that its rules look into.
type class struct {
	namespace string // the pods'; of nobody it is empty
	chain     string
	rules     []nft.Rule
	fixed     map[string]*nft.Set // whose content is in their name
	peers     map[string]peers    // which pods come to and leave, by name
}

// sets are the names of all sets of a class.
func (c *class) sets() iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range c.fixed {
			if !yield(name) {
				return
			}
		}
		for name := range c.peers {
			if !yield(name) {
				return
			}
		}
	}
}

// peers are the pods that any of some selectors selects: their addresses, or with names of ports their addresses and those ports of theirs.
type peers struct {
	family    nft.Family // of the addresses
	selectors []selector
	ports     []namedPort
}

// name is the same for peers that are told alike.
func (p peers) name() string {
	ids, of := map[string]bool{}, map[string]bool{}
	for _, s := range p.selectors {
		ids[s.id()] = true
		of[s.namespace] = true
	}
	name, id := "pods", strings.Join(slices.Sorted(maps.Keys(ids)), "\n")
	if len(p.ports) > 0 {
		name = "named"
	}
	name += six(p.family) + "-"
	for _, port := range p.ports {
		id += "\n" + nft.ProtoName(port.proto) + " " + port.name
	}
	if one := slices.Collect(maps.Keys(of)); len(one) == 1 && one[0] != "" {
		name += one[0] + "-"
	}
	return name + hash(id)
}

// key are the fields of the set's elements.
func (p peers) key() []nft.Type {
	if len(p.ports) > 0 {
		return []nft.Type{p.family.Addr, nft.Proto, nft.Service}
	}
	return []nft.Type{p.family.Addr}
}

// hash tells texts apart, also those that somebody chose to be mistaken.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:24])
}

// compile returns what the policies of a pod's namespace allow it in one direction; nil is everything.
func compile(w way, namespace string, p *pod, policies map[string]*policy) *class {
	isolated := false
	all, family := union{}, w.family()
	for _, policy := range policies {
		if !policy.isolates[w.direction()] || !policy.pods.Matches(p.labels) {
			continue
		}
		isolated = true
		for _, r := range policy.rules[w.direction()] {
			r = r.of(family)
			if r.anyPeer && r.anyPort {
				return nil
			}
			all.add(r, family)
		}
	}
	if !isolated {
		return nil
	}
	c := compiler{way: w, family: family, pod: p, class: &class{namespace: namespace, fixed: map[string]*nft.Set{}, peers: map[string]peers{}}, rules: map[string]nft.Rule{}}
	for _, r := range all {
		c.allow(*r)
	}
	if len(c.rules) == 0 {
		return nobody(w)
	}
	texts := slices.Sorted(maps.Keys(c.rules))
	for _, t := range texts {
		c.class.rules = append(c.class.rules, c.rules[t])
	}
	c.class.rules = append(c.class.rules, nft.Rule{nft.Goto(refused(w))})
	c.class.chain = w.String() + "-" + namespace + "-" + hash(strings.Join(texts, "\n"))
	return c.class
}

// union are rules by their ports, or those for everybody together: what many rules list takes as few sets and rules of the kernel's, which
// looks for a set among all of a table, for each rule anew.
type union map[string]*rule

func (u union) add(r rule, f nft.Family) {
	key := "everybody"
	if !r.anyPeer {
		key = fmt.Sprint(r.anyPort, slices.SortedFunc(slices.Values(r.ports), port.compare))
	}
	have := u[key]
	if have == nil {
		have = &rule{anyPeer: r.anyPeer, anyPort: r.anyPort, blocks: map[string][]nft.Range{}}
		u[key] = have
	}
	if r.anyPeer || len(have.ports) == 0 {
		have.ports = append(have.ports, r.ports...)
	}
	have.pods, have.blocks[f.Name] = append(have.pods, r.pods...), append(have.blocks[f.Name], r.blocks[f.Name]...)
}

// nobody is the class of who may do nothing.
func nobody(w way) *class { return &class{chain: refused(w)} }

// compiler makes a class, rule by rule.
type compiler struct {
	way    way
	family nft.Family
	pod    *pod
	class  *class
	rules  map[string]nft.Rule // by their text: what two policies allow is there once
}

// peer is the other side's address.
func (c compiler) peer() nft.Field {
	if c.way.direction() == ingress {
		return c.family.CtClient()
	}
	return c.family.CtServer()
}

// allow adds what one rule of a policy allows. However many peers and ports it lists, that is a handful of rules here.
func (c compiler) allow(r rule) {
	for _, ports := range c.ports(r) {
		if r.anyPeer {
			c.add(ports)
			continue
		}
		if len(r.pods) > 0 {
			c.add(nft.Rule{nft.In(c.peers(r.pods, nil), c.peer())}, ports)
		}
		if blocks := r.blocks[c.family.Name]; len(blocks) > 0 {
			c.add(nft.Rule{nft.In(c.blocks(nft.Merge(blocks)), c.peer())}, ports)
		}
	}
	if names := r.names(); c.way.direction() == egress && len(names) > 0 {
		c.named(r, names)
	}
}

func (c compiler) add(parts ...nft.Rule) {
	r := append(slices.Concat(parts...), nft.Return())
	c.rules[r.Text()] = r
}

// ports are alternatives for the ports that have numbers, which those with a name have at the pod itself.
func (c compiler) ports(r rule) (rules []nft.Rule) {
	if r.anyPort {
		return []nft.Rule{{}}
	}
	numbers, spans := map[string]string{}, map[uint8][]nft.Ports{}
	for _, p := range r.ports {
		switch {
		case p.name != "":
			if n, ok := c.pod.ports[namedPort{p.proto, p.name}]; ok && c.way.direction() == ingress {
				numbers[nft.Pack(p.proto, n)] = ""
			}
		case p.First == p.Last:
			numbers[nft.Pack(p.proto, p.First)] = ""
		default:
			spans[p.proto] = append(spans[p.proto], p.Ports)
		}
	}
	for proto, ps := range spans {
		rule := nft.Rule{nft.CtIs(proto)}
		if ps = nft.MergePorts(ps); ps[0] != allPorts() {
			rule = append(rule, nft.In(c.spans(ps), nft.CtServerPort()))
		}
		rules = append(rules, rule)
	}
	if len(numbers) > 0 {
		name := c.fixed("ports", &nft.Set{Key: []nft.Type{nft.Proto, nft.Service}, Elems: numbers})
		rules = append(rules, nft.Rule{nft.In(name, nft.CtProto(), nft.CtServerPort())})
	}
	return rules
}

// named allows connections to the ports that have the names at the other side, which only pods have.
func (c compiler) named(r rule, names []namedPort) {
	at := func(s ...selector) nft.Stmt {
		return nft.In(c.peers(s, names), c.family.CtServer(), nft.CtProto(), nft.CtServerPort())
	}
	if r.anyPeer {
		c.add(nft.Rule{at(everyPod())})
		return
	}
	if len(r.pods) > 0 {
		c.add(nft.Rule{at(r.pods...)})
	}
	if blocks := r.blocks[c.family.Name]; len(blocks) > 0 {
		c.add(nft.Rule{nft.In(c.blocks(nft.Merge(blocks)), c.family.CtServer()), at(everyPod())})
	}
}

func (c compiler) peers(selectors []selector, ports []namedPort) string {
	p := peers{family: c.family, selectors: selectors, ports: ports}
	name := p.name()
	c.class.peers[name] = p
	return name
}

func (c compiler) spans(ps []nft.Ports) string {
	elems := map[string]string{}
	for _, p := range ps {
		elems[nft.Pack(p.First, p.Last)] = ""
	}
	return c.fixed("spans", &nft.Set{Key: []nft.Type{nft.Service}, Ranges: true, Elems: elems})
}

func (c compiler) blocks(rs []nft.Range) string {
	elems := map[string]string{}
	for _, r := range rs {
		elems[nft.Pack(r.First, r.Last)] = ""
	}
	return c.fixed("blocks"+six(c.family), &nft.Set{Key: []nft.Type{c.family.Addr}, Ranges: true, Elems: elems})
}

// fixed names a set after its content.
func (c compiler) fixed(kind string, s *nft.Set) string {
	name := kind + "-" + hash(strings.Join(slices.Sorted(maps.Keys(s.Elems)), ""))
	c.class.fixed[name] = s
	return name
}
