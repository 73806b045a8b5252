package apiserver

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/apiserver/aggregator"
)

// tie says how groups of the same priority are ordered.
type tie func(g group, first schema.GroupVersion) string

// byService orders by the name of the first of a group's APIServices, as the old form of discovery is.
func byService(_ group, first schema.GroupVersion) string { return first.Version + "." + first.Group }

// byGroup orders by the group's name, as the aggregated form is.
func byGroup(g group, _ schema.GroupVersion) string { return g.name }

// merged is the groups that are served here together with what is served elsewhere, in the order of the priorities that the
// APIServices have. The groups are only read, and returned as they are where nothing is served elsewhere.
func merged(groups []group, elsewhere *aggregator.State, between tie) []group {
	if elsewhere == nil {
		return groups
	}
	all := make([]group, len(groups))
	for i, g := range groups {
		all[i] = group{g.name, slices.Clone(g.versions)}
	}
	for _, svc := range elsewhere.Remote() {
		gv := schema.GroupVersion{Group: svc.Spec.Group, Version: svc.Spec.Version}
		gi := slices.IndexFunc(all, func(g group) bool { return g.name == gv.Group })
		if gi < 0 {
			gi = len(all)
			all = append(all, group{name: gv.Group})
		}
		v := groupVersion{GroupVersion: gv, elsewhere: svc}
		if vi := slices.IndexFunc(all[gi].versions, func(v groupVersion) bool { return v.GroupVersion == gv }); vi >= 0 {
			all[gi].versions[vi] = v
		} else {
			all[gi].versions = append(all[gi].versions, v)
		}
	}
	for _, g := range all {
		slices.SortStableFunc(g.versions, func(a, b groupVersion) int {
			_, x := elsewhere.Priorities(a.GroupVersion)
			_, y := elsewhere.Priorities(b.GroupVersion)
			return cmp.Or(cmp.Compare(y, x), version.CompareKubeAwareVersionStrings(b.Version, a.Version))
		})
	}
	slices.SortStableFunc(all, func(a, b group) int {
		p, nameA := standing(a, elsewhere, between)
		q, nameB := standing(b, elsewhere, between)
		return cmp.Or(cmp.Compare(q, p), cmp.Compare(nameA, nameB))
	})
	return all
}

// ours is the standing of groups whose place no APIService can take: they come before all others.
const ours = 1 << 30

// standing is the place of a group among others: the highest priority of its versions, and its name among those of the same.
func standing(g group, elsewhere *aggregator.State, between tie) (priority int32, name string) {
	if aggregator.Ours(g.name) {
		return ours, g.name
	}
	var first schema.GroupVersion
	for _, v := range g.versions {
		p, _ := elsewhere.Priorities(v.GroupVersion)
		if p > priority || p == priority && byService(g, v.GroupVersion) < byService(g, first) {
			priority, first = p, v.GroupVersion
		}
	}
	return priority, between(g, first)
}
