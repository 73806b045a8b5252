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

	// Kept between calls to save allocations.
	checks   []*plugins.Check
	feasible []int
	totals   []int64
	ranks    []int64
}

func newPlacer(seed uint64) *placer {
	return &placer{filters: plugins.Filters(), scores: plugins.Scores(), rand: rand.New(rand.NewPCG(seed, 0))}
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

// place returns the slot of the best node for p, any of the best where several are.
func (pl *placer) place(c *cluster.Cluster, p *cluster.Pod) (int, *failure) {
	pl.checks = pl.checks[:0]
	for i := range pl.filters {
		f := &pl.filters[i]
		check, err := f.Prepare(c, p)
		if err != nil {
			return 0, &failure{nodes: c.Count, fault: err, wakes: f.Wakes | plugins.NodeAdded}
		}
		pl.checks = append(pl.checks, check) // nil keeps the numbering
	}
	pl.feasible = pl.feasible[:0]
	for slot, n := range c.Nodes {
		if n != nil && pl.rejects(slot) < 0 {
			pl.feasible = append(pl.feasible, slot)
		}
	}
	switch len(pl.feasible) {
	case 0:
		return 0, pl.explain(c)
	case 1:
		return pl.feasible[0], nil
	}
	return pl.best(c, p), nil
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
func (pl *placer) best(c *cluster.Cluster, p *cluster.Pod) int {
	n := len(pl.feasible)
	pl.totals = append(pl.totals[:0], make([]int64, n)...)
	pl.ranks = append(pl.ranks[:0], make([]int64, n)...)
	for i := range pl.scores {
		s := &pl.scores[i]
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
	best, ties := 0, 0
	for j, t := range pl.totals {
		switch {
		case t > pl.totals[best] || ties == 0:
			best, ties = j, 1
		case t == pl.totals[best]:
			if ties++; pl.rand.IntN(ties) == 0 {
				best = j
			}
		}
	}
	return pl.feasible[best]
}
