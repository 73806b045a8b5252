package scheduler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/yare-dev/yare/scheduler/cluster"
	"github.com/yare-dev/yare/scheduler/plugins"
)

// placer chooses nodes. It is pure but for its source of chance, and belongs to one goroutine.
type placer struct {
	filters []plugins.Filter
	scores  []plugins.Score
	rand    *rand.Rand
	memos   map[string]*memo // by signature
	clock   uint64

	// Kept between calls to save allocations.
	checks   []*plugins.Check // by filter
	local    []*plugins.Check
	global   []*plugins.Check
	enough   int // feasible slots; 0: all are wanted
	feasible []int
	totals   []int64
	ranks    []int64
}

func newPlacer(seed uint64) *placer {
	return &placer{
		filters: plugins.Filters(), scores: plugins.Scores(), rand: rand.New(rand.NewPCG(seed, 0)), memos: map[string]*memo{},
	}
}

// failure says why a pod fits nowhere.
type failure struct {
	nodes   int
	fault   error          // of the pod itself
	reasons map[string]int // how many nodes gave each
	wakes   plugins.Change // what may help
}

// Error is upstream's message.
func (f *failure) Error() string {
	if f.nodes == 0 {
		return "no nodes available to schedule pods"
	}
	if f.fault != nil {
		return fmt.Sprintf("0/%d nodes are available: %v.", f.nodes, f.fault)
	}
	parts := make([]string, 0, len(f.reasons))
	for r, n := range f.reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, r))
	}
	slices.Sort(parts)
	return fmt.Sprintf("0/%d nodes are available: %s.", f.nodes, strings.Join(parts, ", "))
}

// memo is what local plugins said of nodes for pods of one signature.
type memo struct {
	seen  []uint64 // Cluster.Changed when they were asked, plus one
	pass  []bool
	score []int64
	used  uint64
}

// maxMemos bounds the signatures that are remembered.
const maxMemos = 64

// memoOf returns the memo for p's signature.
func (pl *placer) memoOf(c *cluster.Cluster, p *cluster.Pod) (*memo, error) {
	id, err := plugins.Signature(p)
	if err != nil {
		return nil, err
	}
	m := pl.memos[id]
	if m == nil {
		if len(pl.memos) >= maxMemos {
			oldest := ""
			for id, m := range pl.memos {
				if oldest == "" || m.used < pl.memos[oldest].used {
					oldest = id
				}
			}
			delete(pl.memos, oldest)
		}
		m = &memo{}
		pl.memos[id] = m
	}
	pl.clock++
	m.used = pl.clock
	if n := len(c.Nodes) - len(m.seen); n > 0 {
		m.seen = append(m.seen, make([]uint64, n)...)
		m.pass = append(m.pass, make([]bool, n)...)
		m.score = append(m.score, make([]int64, n)...)
	}
	return m, nil
}

// place returns the slot of the best node for p, any of the best where several are.
func (pl *placer) place(c *cluster.Cluster, p *cluster.Pod) (int, *failure) {
	m, err := pl.memoOf(c, p)
	if err != nil {
		return 0, &failure{nodes: c.Count, fault: err}
	}
	pl.checks, pl.local, pl.global, pl.enough = pl.checks[:0], pl.local[:0], pl.global[:0], 0
	for i := range pl.filters {
		f := &pl.filters[i]
		check, err := f.Prepare(c, p)
		if err != nil {
			return 0, &failure{nodes: c.Count, fault: err, wakes: f.Wakes | plugins.NodeAdded}
		}
		pl.checks = append(pl.checks, check) // nil keeps the numbering
		switch {
		case check == nil:
		case f.Local:
			pl.local = append(pl.local, check)
		default:
			pl.global = append(pl.global, check)
		}
		if check != nil && f.Dear {
			pl.enough = max(leastLooked, c.Count*candidateShare/100)
		}
	}
	pl.filter(c, p, m)
	switch len(pl.feasible) {
	case 0:
		return 0, pl.explain(c)
	case 1:
		return pl.feasible[0], nil
	}
	return pl.best(c, p, m), nil
}

// filter finds the feasible slots, or enough of them, beginning anywhere. Local plugins are asked only about nodes that changed.
func (pl *placer) filter(c *cluster.Cluster, p *cluster.Pod, m *memo) {
	pl.feasible = pl.feasible[:0]
	var ranks []func(int) int64
	var weights []int64
	for i := range pl.scores {
		if s := &pl.scores[i]; s.Local {
			if rank := s.Prepare(c, p, nil); rank != nil {
				ranks, weights = append(ranks, rank), append(weights, s.Weight)
			}
		}
	}
	first := 0
	if pl.enough > 0 && len(c.Nodes) > 0 {
		first = pl.rand.IntN(len(c.Nodes))
	}
	for i := range c.Nodes {
		slot := first + i
		if slot >= len(c.Nodes) {
			slot -= len(c.Nodes)
		}
		if c.Nodes[slot] == nil {
			continue
		}
		if now := c.Changed[slot] + 1; m.seen[slot] != now {
			m.seen[slot], m.score[slot] = now, 0
			m.pass[slot] = passes(pl.local, slot)
			for i, rank := range ranks {
				m.score[slot] += weights[i] * rank(slot)
			}
		}
		if m.pass[slot] && passes(pl.global, slot) {
			if pl.feasible = append(pl.feasible, slot); len(pl.feasible) == pl.enough {
				return
			}
		}
	}
}

func passes(checks []*plugins.Check, slot int) bool {
	for _, c := range checks {
		if !c.Pass(slot) {
			return false
		}
	}
	return true
}

// rejects returns the number of the first filter that the node does not pass, or -1.
func (pl *placer) rejects(slot int) int {
	for i, check := range pl.checks {
		if check != nil && !check.Pass(slot) {
			return i
		}
	}
	return -1
}

func (pl *placer) explain(c *cluster.Cluster) *failure {
	f := &failure{nodes: c.Count, reasons: map[string]int{}, wakes: plugins.NodeAdded}
	for slot, n := range c.Nodes {
		if n == nil {
			continue
		}
		i := pl.rejects(slot)
		f.wakes |= pl.filters[i].Wakes
		for _, r := range pl.checks[i].Why(slot) {
			f.reasons[r]++
		}
	}
	return f
}

// best returns the feasible slot with the highest sum of weighted scores.
func (pl *placer) best(c *cluster.Cluster, p *cluster.Pod, m *memo) int {
	pl.totals = pl.totals[:0]
	for _, slot := range pl.feasible {
		pl.totals = append(pl.totals, m.score[slot])
	}
	pl.ranks = slices.Grow(pl.ranks[:0], len(pl.feasible))[:len(pl.feasible)]
	for i := range pl.scores {
		s := &pl.scores[i]
		if s.Local {
			continue // in m
		}
		rank := s.Prepare(c, p, pl.feasible)
		if rank == nil {
			continue
		}
		for j, slot := range pl.feasible {
			pl.ranks[j] = rank(slot)
		}
		s.Scale.Apply(pl.ranks)
		for j, r := range pl.ranks {
			pl.totals[j] += s.Weight * r
		}
	}
	high, ties := pl.totals[0], 0
	for _, t := range pl.totals {
		if t > high {
			high, ties = t, 0
		}
		if t == high {
			ties++
		}
	}
	for j, left := 0, pl.rand.IntN(ties); ; j++ {
		if pl.totals[j] == high {
			if left == 0 {
				return pl.feasible[j]
			}
			left--
		}
	}
}
