package netpol

import (
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/linux/nft"
)

// state is the wanted table and what it is made of, so that a change costs what it is worth. It is told of changes by set and its
// kin, and takes them into the table at update.
type state struct {
	c          Config
	ways       []way // of the families that pods have
	namespaces map[string]labels.Set
	policies   map[string]map[string]*policy // by namespace and name
	pods       map[string]map[string]*pod    // by namespace and name

	attached  map[string]*Attachment          // by sandbox
	sandboxes map[api.Key]map[string]bool     // of a pod
	holder    map[netip.Addr]string           // which sandbox has the address
	claims    map[netip.Addr]map[api.Key]bool // which pods say that an address is theirs
	claimed   map[api.Key][]netip.Addr        // the same by pod

	dirtySandboxes map[string]bool
	dirtyAddrs     map[netip.Addr]bool

	table  *nft.Table
	rights map[string][ways]*class   // by sandbox; nil for who is not isolated
	over   map[string]string         // namespaces of sandboxes whose rights the table has no room for: they may do nothing
	users  map[string]int            // of chains and sets
	share  map[string]map[string]int // users of sets by namespace
	groups map[string]*group         // by the name of their set
}

// group is a set of peers that a chain looks into.
type group struct {
	peers
	six     bool                         // of that family
	within  map[string][]labels.Selector // which pods of a namespace, as far as it was asked
	members map[netip.Addr]string        // their elements, one after the other
}

func newState(c Config) *state {
	return &state{c: c, ways: slices.Concat(waysOf(nft.IP4), c.ways6()), namespaces: map[string]labels.Set{}, policies: map[string]map[string]*policy{}, pods: map[string]map[string]*pod{},
		attached: map[string]*Attachment{}, sandboxes: map[api.Key]map[string]bool{}, holder: map[netip.Addr]string{},
		claims: map[netip.Addr]map[api.Key]bool{}, claimed: map[api.Key][]netip.Addr{},
		dirtySandboxes: map[string]bool{}, dirtyAddrs: map[netip.Addr]bool{},
		table: skeleton(c), rights: map[string][ways]*class{}, over: map[string]string{}, users: map[string]int{}, share: map[string]map[string]int{},
		groups: map[string]*group{}}
}

// setNamespace notes a namespace's labels; nil is one that is gone.
func (s *state) setNamespace(name string, l labels.Set) {
	old, had := s.namespaces[name]
	if had == (l != nil) && labels.Equals(old, l) {
		return
	}
	if delete(s.namespaces, name); l != nil {
		s.namespaces[name] = l
	}
	for _, g := range s.groups {
		delete(g.within, name)
	}
	for pod := range s.pods[name] {
		s.touch(s.claimed[api.Key{Namespace: name, Name: pod}])
	}
}

// setPolicy notes a policy; nil is one that is gone.
func (s *state) setPolicy(k api.Key, o *networkingv1.NetworkPolicy) {
	if o != nil {
		put(s.policies, k, parsePolicy(o))
	} else {
		drop(s.policies, k)
	}
	for id, a := range s.attached {
		if a.Namespace == k.Namespace {
			s.dirtySandboxes[id] = true
		}
	}
}

// setPod notes a pod; nil is one that is gone.
func (s *state) setPod(k api.Key, p *pod) {
	old := s.pods[k.Namespace][k.Name]
	if old != nil && p != nil && old.equal(p) {
		return
	}
	if p != nil {
		put(s.pods, k, p)
	} else {
		drop(s.pods, k)
	}
	for id := range s.sandboxes[k] {
		s.dirtySandboxes[id] = true
	}
	s.claim(k)
}

// forget notes that no namespace and no pod is known any more.
func (s *state) forget() {
	for name := range s.namespaces {
		s.setNamespace(name, nil)
	}
	for namespace, pods := range s.pods {
		for name := range pods {
			s.setPod(api.Key{Namespace: namespace, Name: name}, nil)
		}
	}
}

// attach notes which addresses a pod of this node has. Whoever had them before has them no more.
func (s *state) attach(a *Attachment) {
	s.detach(a.Sandbox)
	for _, ip := range a.Addrs {
		if before, taken := s.holder[ip]; taken {
			s.detach(before)
		}
		s.holder[ip] = a.Sandbox
	}
	s.attached[a.Sandbox] = a
	if s.sandboxes[a.key()] == nil {
		s.sandboxes[a.key()] = map[string]bool{}
	}
	s.sandboxes[a.key()][a.Sandbox] = true
	s.dirtySandboxes[a.Sandbox] = true
	s.claim(a.key())
}

// detach notes that a pod of this node has its addresses no more.
func (s *state) detach(sandbox string) {
	a := s.attached[sandbox]
	if a == nil {
		return
	}
	delete(s.attached, sandbox)
	for _, ip := range a.Addrs {
		delete(s.holder, ip)
	}
	if delete(s.sandboxes[a.key()], sandbox); len(s.sandboxes[a.key()]) == 0 {
		delete(s.sandboxes, a.key())
	}
	s.dirtySandboxes[sandbox] = true
	s.touch(a.Addrs)
	s.claim(a.key())
}

func put[T any](m map[string]map[string]T, k api.Key, v T) {
	if m[k.Namespace] == nil {
		m[k.Namespace] = map[string]T{}
	}
	m[k.Namespace][k.Name] = v
}

func drop[T any](m map[string]map[string]T, k api.Key) {
	if delete(m[k.Namespace], k.Name); len(m[k.Namespace]) == 0 {
		delete(m, k.Namespace)
	}
}

func (s *state) touch(as []netip.Addr) {
	for _, a := range as {
		s.dirtyAddrs[a] = true
	}
}

// claim works out which addresses are a pod's: those that it is attached with, and those of its status that are not of this node's
// range, where the network knows better.
func (s *state) claim(k api.Key) {
	var now []netip.Addr
	if p := s.pods[k.Namespace][k.Name]; p != nil {
		for _, a := range p.addrs {
			if !slices.ContainsFunc(s.c.Ranges, func(r netip.Prefix) bool { return r.Contains(a) }) {
				now = append(now, a)
			}
		}
		for id := range s.sandboxes[k] {
			if a := s.attached[id]; a.is(p) {
				now = append(now, a.Addrs...)
			}
		}
	}
	s.touch(s.claimed[k])
	s.touch(now)
	for _, a := range s.claimed[k] {
		if delete(s.claims[a], k); len(s.claims[a]) == 0 {
			delete(s.claims, a)
		}
	}
	if delete(s.claimed, k); len(now) > 0 {
		s.claimed[k] = now
	}
	for _, a := range now {
		if s.claims[a] == nil {
			s.claims[a] = map[api.Key]bool{}
		}
		s.claims[a][k] = true
	}
}

// wanted is the table as of the last update, nil when nobody is isolated.
func (s *state) wanted() *nft.Table {
	t := s.table
	for _, w := range s.ways {
		if s := s.table.Sets["isolated"+six(w.family())]; len(s.Elems) > 0 {
			return t
		}
	}
	return nil
}

// update takes what was noted into the table and returns the transaction from the table before.
func (s *state) update() *nft.Batch {
	before := s.wanted() != nil
	e := newEdit(s.table)
	changed := map[netip.Addr]bool{}
	if s.take(e, changed) && len(s.over) > 0 { // there may be room now
		for id := range s.over {
			s.dirtySandboxes[id] = true
		}
		s.take(e, changed)
	}
	for a := range s.dirtyAddrs {
		changed[a] = true
		for name, g := range s.groups {
			s.place(e, name, g, a)
		}
	}
	for a := range changed {
		s.dispatch(e, a)
	}
	clear(s.dirtyAddrs)
	switch after := s.wanted() != nil; {
	case !before && !after:
		return &nft.Batch{}
	case !after:
		return nft.Diff(s.table, nil)
	case !before:
		return nft.Diff(nil, s.table)
	}
	b := &nft.Batch{}
	b.Update(e.changes())
	return b
}

// take brings the rights of sandboxes up to date, notes their addresses in changed, and says whether sets have gone.
func (s *state) take(e *edit, changed map[netip.Addr]bool) (gone bool) {
	var old [][ways]*class
	// What is used anew comes before what is not used any more goes, so that nothing goes and comes again.
	for id := range s.dirtySandboxes {
		old = append(old, s.rights[id])
		delete(s.rights, id)
		delete(s.over, id)
		a := s.attached[id]
		if a == nil {
			continue
		}
		r := s.rightsOf(a)
		for w, c := range r {
			if !s.fits(c) {
				r[w], s.over[id] = nobody(way(w)), a.Namespace
			}
			s.use(e, way(w), r[w])
		}
		s.rights[id] = r
		for _, ip := range a.Addrs {
			changed[ip] = true
		}
	}
	clear(s.dirtySandboxes)
	sets := len(s.table.Sets)
	for _, r := range old {
		for _, c := range r {
			s.release(e, c)
		}
	}
	return len(s.table.Sets) < sets
}

// mostSets is how many sets the table has at most. To add a rule the kernel searches all sets, and lets no other process of the host change
// rules meanwhile: nearly a second with these, a minute with ten times as many.
const mostSets = 4096

// mostShare is how many of them the pods of one namespace have at most: by the policies of one nobody else is cut off, only by those of four.
const mostShare = mostSets / 4

// fits says whether the table and the namespace's share of it have room for a class.
func (s *state) fits(c *class) bool {
	if c == nil {
		return true
	}
	share := s.share[c.namespace]
	all, own := len(s.table.Sets), len(share)
	for name := range c.sets() {
		if s.users[name] == 0 {
			all++
		}
		if share[name] == 0 {
			own++
		}
	}
	return all <= mostSets && own <= mostShare
}

// cutOff counts the pods that there is no room for by namespace.
func (s *state) cutOff() map[string]int {
	n := map[string]int{}
	for _, namespace := range s.over {
		n[namespace]++
	}
	return n
}

// rightsOf is what the policies say of an attached pod.
func (s *state) rightsOf(a *Attachment) (r [ways]*class) {
	policies := s.policies[a.Namespace]
	if len(policies) == 0 {
		return r
	}
	for _, w := range s.ways {
		if s.isStranger(a) {
			r[w] = nobody(w)
		} else {
			r[w] = compile(w, a.Namespace, s.pods[a.Namespace][a.Name], policies)
		}
	}
	return r
}

// isStranger says that nothing is known of a pod in a namespace with policies.
func (s *state) isStranger(a *Attachment) bool {
	return len(s.policies[a.Namespace]) > 0 && !a.is(s.pods[a.Namespace][a.Name])
}

// use counts a user of a class, which is made for the first.
func (s *state) use(e *edit, w way, c *class) {
	if c == nil || c.chain == refused(w) {
		return
	}
	if s.users[c.chain]++; s.users[c.chain] == 1 {
		e.putChain(c.chain, &nft.Chain{Rules: c.rules})
	}
	for name := range c.sets() {
		put(s.share, api.Key{Namespace: c.namespace, Name: name}, s.share[c.namespace][name]+1)
	}
	for name, set := range c.fixed {
		if s.users[name]++; s.users[name] == 1 {
			e.addSet(name, set)
		}
	}
	for name, p := range c.peers {
		if s.users[name]++; s.users[name] == 1 {
			e.addSet(name, &nft.Set{Key: p.key(), Elems: map[string]string{}})
			s.populate(e, name, p)
		}
	}
}

// release is the reverse of use.
func (s *state) release(e *edit, c *class) {
	if c == nil || s.users[c.chain] == 0 {
		return
	}
	less := func(users map[string]int, name string) bool {
		if users[name]--; users[name] > 0 {
			return false
		}
		delete(users, name)
		return true
	}
	gone := func(name string) bool { return less(s.users, name) }
	share := s.share[c.namespace]
	for name := range c.sets() {
		less(share, name)
	}
	if len(share) == 0 {
		delete(s.share, c.namespace)
	}
	if gone(c.chain) {
		e.putChain(c.chain, nil)
	}
	for name := range c.fixed {
		if gone(name) {
			e.removeSet(name)
		}
	}
	for name := range c.peers {
		if gone(name) {
			e.removeSet(name)
			delete(s.groups, name)
		}
	}
}

// populate fills a new group.
func (s *state) populate(e *edit, name string, p peers) {
	g := &group{peers: p, six: p.family.Name == nft.IP6.Name, within: map[string][]labels.Selector{}, members: map[netip.Addr]string{}}
	s.groups[name] = g
	for namespace, pods := range s.pods {
		if len(s.within(g, namespace)) == 0 {
			continue
		}
		for pod := range pods {
			for _, a := range s.claimed[api.Key{Namespace: namespace, Name: pod}] {
				s.place(e, name, g, a)
			}
		}
	}
}

// within returns what a group selects of the pods of a namespace: any of it.
func (s *state) within(g *group, namespace string) []labels.Selector {
	pods, known := g.within[namespace]
	if known {
		return pods
	}
	l, exists := s.namespaces[namespace]
	for _, sel := range g.selectors {
		if sel.namespaces == nil && sel.namespace == namespace || sel.namespaces != nil && exists && sel.namespaces.Matches(l) {
			pods = append(pods, sel.pods)
		}
	}
	g.within[namespace] = pods
	return pods
}

// place brings an address into a group, or out of it. An address that several pods claim comes in when all of them would, alike.
func (s *state) place(e *edit, name string, g *group, a netip.Addr) {
	if a.Is6() != g.six {
		return
	}
	want := ""
	for k := range s.claims[a] {
		elements := s.elements(g, k, a)
		if elements == "" || want != "" && elements != want {
			want = ""
			break
		}
		want = elements
	}
	had := g.members[a]
	if had == want {
		return
	}
	if delete(g.members, a); want != "" {
		g.members[a] = want
	}
	n := nft.Width(g.key())
	for ; had != ""; had = had[n:] {
		e.put(name, had[:n], "", false)
	}
	for ; want != ""; want = want[n:] {
		e.put(name, want[:n], "", true)
	}
}

// elements is what an address of a pod is in a group; empty when the pod does not belong there.
func (s *state) elements(g *group, k api.Key, a netip.Addr) string {
	p := s.pods[k.Namespace][k.Name]
	if p == nil || !slices.ContainsFunc(s.within(g, k.Namespace), func(sel labels.Selector) bool { return sel.Matches(p.labels) }) {
		return ""
	}
	if len(g.ports) == 0 {
		return nft.Pack(a)
	}
	var b strings.Builder
	for _, port := range g.ports {
		if n, has := p.ports[port]; has {
			b.WriteString(nft.Pack(a, port.proto, n))
		}
	}
	return b.String()
}

// dispatch leads what an address sends and is sent to the chains of the pod that has it.
func (s *state) dispatch(e *edit, a netip.Addr) {
	f := nft.FamilyOf(a)
	r, of := s.rights[s.holder[a]], waysOf(f)
	if !slices.Contains(s.ways, of[0]) {
		return // of a family that the cluster's pods do not have
	}
	isolated := r[of[0]] != nil || r[of[1]] != nil
	for _, w := range of {
		verdict := ""
		if r[w] != nil {
			verdict = "jump " + r[w].chain
		}
		e.put(dispatcher(w), nft.Pack(a), verdict, r[w] != nil)
	}
	e.put("isolated"+six(f), nft.Pack(a), "", isolated)
	e.put("self"+six(f), nft.Pack(a, a), "", isolated)
}

// dispatcher is the map that leads to the chains of a direction.
func dispatcher(w way) string { return [...]string{"ingress", "egress", "ingress6", "egress6"}[w] }

// refused is the chain for what no policy allows.
func refused(w way) string {
	return [...]string{"refused", "refused-out", "refused6", "refused6-out"}[w]
}
