// Package fairness decides when a request is served, by FlowSchemas and PriorityLevelConfigurations: so that no client can
// keep the others, or the cluster's own components, from being served. It replaces k8s.io/apiserver's API priority and
// fairness.
//
//	request ── FlowSchema ──> level ── seats free ──> served
//	           (precedence)     └ else: a queue of a few that its flow is dealt, in virtual time; or 429
//
// A level has seats by its share of the server's. Every period the seats that levels do not need are lent to those that do,
// within the bounds of their configurations. Without contention a request costs a match and one uncontended lock.
package fairness

import (
	"context"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/follow"
	"github.com/yare-dev/yare/store"
)

const (
	// period is how often seats are lent anew.
	period = 10 * time.Second
	// freshness is how late a change of the configuration may count.
	freshness = 100 * time.Millisecond
)

// Fairness is the decider.
type Fairness struct {
	total int
	seed  maphash.Seed
	rules atomic.Pointer[rules]
	// looked and divided are when the configuration was read and the seats lent, in nanoseconds.
	looked, divided atomic.Int64

	mu      sync.Mutex // of everything below
	follow  *follow.Follower
	changed bool
	schemas map[string]*flowcontrolv1.FlowSchema
	configs map[string]*flowcontrolv1.PriorityLevelConfiguration
	levels  map[string]*level
	meter   *meter
}

// New returns a Fairness over the configuration in s, with that many seats.
func New(s *store.Store, seats int) *Fairness {
	f := &Fairness{total: seats, seed: maphash.MakeSeed(), levels: map[string]*level{}, meter: newMeter()}
	f.Reset()
	f.follow = follow.New(s, f, known()...)
	f.rebuild()
	return f
}

// Reset implements follow.State.
func (f *Fairness) Reset() {
	f.schemas = map[string]*flowcontrolv1.FlowSchema{}
	f.configs = map[string]*flowcontrolv1.PriorityLevelConfiguration{}
	f.changed = true
}

// Change implements follow.State.
func (f *Fairness) Change(k *api.Kind, now, old api.Object) {
	f.changed = true
	if now == nil {
		if k == api.FlowSchemaKind {
			delete(f.schemas, old.GetName())
		} else {
			delete(f.configs, old.GetName())
		}
		return
	}
	switch o := now.(type) {
	case *flowcontrolv1.FlowSchema:
		f.schemas[o.Name] = o
	case *flowcontrolv1.PriorityLevelConfiguration:
		f.configs[o.Name] = o
	}
}

// Ticket is a request's leave to be served.
type Ticket struct {
	// SchemaUID and LevelUID are told to the client.
	SchemaUID, LevelUID string
	// After is for how many seconds a client that is refused is to stay away.
	After int
	flow  *flow
	leave func(took time.Duration)
	seats int
	begin time.Time
}

// Enter waits until the request may be served. Where it may not, there is a reason.
func (f *Fairness) Enter(ctx context.Context, a *authz.Attributes, seats int, now time.Time) (t Ticket, refusal string) {
	f.refresh(now)
	w := f.rules.Load().classify(a)
	t = Ticket{SchemaUID: string(w.schema.UID), LevelUID: w.uid, flow: w, seats: seats}
	w.counts.wait(seats)
	t.begin = now
	var waited bool
	var wait time.Duration
	if t.leave, waited, refusal = w.level.enter(ctx, f.hash(w.schema, a), seats); waited {
		t.begin = time.Now()
		wait = t.begin.Sub(now)
	}
	w.counts.start(seats, wait, refusal)
	if refusal != "" {
		t.After = w.level.drops.refuse(time.Now())
	}
	return t, refusal
}

// Leave gives the seats back.
func (t *Ticket) Leave() {
	took := time.Since(t.begin)
	t.flow.counts.end(t.seats, took)
	if t.leave != nil {
		t.leave(took)
	}
}

func (f *Fairness) hash(s *flowcontrolv1.FlowSchema, a *authz.Attributes) uint64 {
	return maphash.String(f.seed, s.Name+"\x00"+distinguisher(s, a))
}

// refresh takes in changes of the configuration and lends seats, each not too often.
func (f *Fairness) refresh(now time.Time) {
	at := now.UnixNano()
	if at-f.looked.Load() > int64(freshness) {
		f.mu.Lock()
		f.looked.Store(at)
		// An error leaves what is known.
		if err := f.follow.CatchUp(); err == nil && f.changed {
			f.rebuild()
		}
		f.mu.Unlock()
	}
	if last := f.divided.Load(); at-last > int64(period) && f.divided.CompareAndSwap(last, at) {
		f.mu.Lock()
		f.divide()
		f.mu.Unlock()
	}
}

// rebuild makes the rules anew. What must exist is there even before its objects are.
func (f *Fairness) rebuild() {
	f.changed = false
	configs, schemas := maps.Clone(f.configs), maps.Clone(f.schemas)
	for _, c := range bootstrap.MandatoryPriorityLevelConfigurations {
		if configs[c.Name] == nil {
			configs[c.Name] = c
		}
	}
	for _, s := range bootstrap.MandatoryFlowSchemas {
		if schemas[s.Name] == nil {
			schemas[s.Name] = s
		}
	}
	sum := int32(0)
	for _, c := range configs {
		sum += shares(c)
	}
	r := &rules{levels: map[string]*level{}}
	for name, c := range configs {
		l := f.levels[name]
		if l == nil {
			l = &level{name: name}
		}
		l.configure(c, divideNominally(c, f.total, sum))
		r.levels[name] = l
	}
	f.levels = r.levels
	for _, s := range ordered(slices.Collect(maps.Values(schemas))) {
		if l := r.levels[s.Spec.PriorityLevelConfiguration.Name]; l != nil {
			w := &flow{s, l, string(configs[l.name].UID), f.meter.counts(l.name, s.Name)}
			r.flows = append(r.flows, w)
			if s.Name == flowcontrolv1.FlowSchemaNameCatchAll {
				r.rest = w
			}
		}
	}
	f.meter.levels.Store(&r.levels)
	f.rules.Store(r)
}

// shares is a level's part of the server.
func shares(c *flowcontrolv1.PriorityLevelConfiguration) int32 {
	switch {
	case c.Spec.Limited != nil && c.Spec.Limited.NominalConcurrencyShares != nil:
		return *c.Spec.Limited.NominalConcurrencyShares
	case c.Spec.Exempt != nil && c.Spec.Exempt.NominalConcurrencyShares != nil:
		return *c.Spec.Exempt.NominalConcurrencyShares
	}
	return 0
}

// divideNominally is what a level has of total by its shares of sum.
func divideNominally(c *flowcontrolv1.PriorityLevelConfiguration, total int, sum int32) share {
	n := int(math.Ceil(float64(total) * float64(shares(c)) / float64(max(sum, 1))))
	percent := func(p int32) int { return int(math.Round(float64(n) * float64(p) / 100)) }
	s := share{nominal: n, least: n, most: total}
	switch l, e := c.Spec.Limited, c.Spec.Exempt; {
	case l != nil:
		if l.LendablePercent != nil {
			s.least -= percent(*l.LendablePercent)
		}
		if l.BorrowingLimitPercent != nil {
			s.most = n + percent(*l.BorrowingLimitPercent)
		}
	case e != nil && e.LendablePercent != nil:
		s.least -= percent(*e.LendablePercent)
	}
	return s
}

// divide lends seats by what was asked for.
func (f *Fairness) divide() {
	var limited []*level
	var wishes []wish
	for _, name := range slices.Sorted(maps.Keys(f.levels)) {
		l := f.levels[name]
		if w, ok := l.wish(); ok {
			limited, wishes = append(limited, l), append(wishes, w)
		}
	}
	for i, n := range allocate(f.total, wishes) {
		limited[i].grant(n)
	}
}

// smoothing is how slowly the memory of a peak fades.
const smoothing = 0.977

// wish is what a level would have of the seats.
type wish struct {
	least, most int
	target      float64
}

func (l *level) wish() (wish, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exempt {
		return wish{}, false
	}
	peak := float64(l.peak)
	l.peak = l.seats + l.asked
	l.demand = max(peak, smoothing*l.demand+(1-smoothing)*peak)
	least := max(l.share.least, min(l.share.nominal, int(peak)))
	return wish{least, max(least, l.share.most), max(float64(least), l.demand)}, true
}

func (l *level) grant(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit = max(1, n)
	l.dispatch()
}

// allocate divides total by the targets, all scaled alike and held within their bounds.
func allocate(total int, wishes []wish) []int {
	at := func(scale float64) (out []int, sum int) {
		for _, w := range wishes {
			n := min(max(int(math.Round(w.target*scale)), w.least), w.most)
			out = append(out, n)
			sum += n
		}
		return out, sum
	}
	low, high := 0.0, float64(total)+1
	for range 60 {
		mid := (low + high) / 2
		if _, sum := at(mid); sum > total {
			high = mid
		} else {
			low = mid
		}
	}
	out, _ := at(low)
	return out
}
