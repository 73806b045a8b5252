// Package aggregator makes groups of the API that other servers serve part of this one's: it proxies their requests, says which of
// these servers are available, and knows what they tell of themselves. It replaces kube-aggregator, and the controllers of
// kube-apiserver that register the versions of CustomResourceDefinitions.
//
//	client ──> authentication, audit, fairness, authorization ──> Serve ── X-Remote-User and its kin, our certificate ──> server
//	                                    │ which one: State, made of the APIServices as stored
//	Run: APIServices, Services, EndpointSlices ──> check (pure, then a request) ──> condition Available, discovery
//
// An APIService with a Service is remote; all others are served here. Both are registered, so that clients see all there is.
//
// Invariants:
//   - An APIService counts from the moment that its write was acknowledged; without a remote one, a request costs one look at a
//     pointer, and nothing runs but what waits for changes.
//   - What a client shows to this server never goes on: credentials are dropped, and the headers that name a user are ours alone.
//   - Objects of other servers are these servers' affair: they are neither emptied with their namespace nor collected by their owners.
//   - A status is written only when it has changed. Several API servers may write the same one: they find the same.
package aggregator

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/store"
)

// Service is an APIService.
type Service = apiregistrationv1.APIService

// Deps are what the Aggregator needs.
type Deps struct {
	Store *store.Store
	// Client writes APIServices and their status.
	Client client.Client
	// Callout reaches the servers, with this server's certificate of the front proxy's authority.
	Callout *callout.Callout
	Log     *slog.Logger
	Metrics prometheus.Registerer // may be nil
}

// Aggregator is a run.Component. Its other methods may be called whether it runs or not.
type Aggregator struct {
	d     Deps
	meter *meter

	state atomic.Pointer[found]

	mu        sync.Mutex
	discovery map[string]told // by name of the APIService
	documents map[string]*published
}

// found is the State at a revision of the APIServices.
type found struct {
	changed api.Revision
	state   *State // nil: nothing is remote
}

// told is what a server says of itself.
type told struct {
	uid     string // of the APIService
	version apidiscoveryv2.APIVersionDiscovery
	tag     string // of the whole document that it comes from; empty where it has none
}

// State is which groups and versions are served elsewhere, at one moment. It is read-only.
type State struct {
	all    map[schema.GroupVersion]*Service
	remote []*Service // ordered by name
	told   map[string]told
}

// New returns an Aggregator.
func New(d Deps) *Aggregator {
	return &Aggregator{d: d, meter: newMeter(d.Metrics), discovery: map[string]told{}, documents: map[string]*published{}}
}

// Name is the component's name.
func (*Aggregator) Name() string { return "aggregator" }

// State returns what is served elsewhere now, nil when nothing is. It is the same pointer as long as nothing has changed. A nil
// Aggregator knows of nothing.
func (a *Aggregator) State() *State {
	if a == nil {
		return nil
	}
	changed := a.d.Store.Snapshot(api.APIServiceKind).Changed()
	if f := a.state.Load(); f != nil && f.changed == changed {
		return f.state
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.look()
}

// look makes the State anew.
// Preconditions: a.mu is held.
func (a *Aggregator) look() *State {
	snap := a.d.Store.Snapshot(api.APIServiceKind)
	s := &State{all: map[schema.GroupVersion]*Service{}, told: maps.Clone(a.discovery)}
	for e := range snap.All("", api.Key{}) {
		svc := e.Object.(*Service)
		s.all[schema.GroupVersion{Group: svc.Spec.Group, Version: svc.Spec.Version}] = svc
		if svc.Spec.Service != nil && !Ours(svc.Spec.Group) {
			s.remote = append(s.remote, svc)
		}
	}
	if len(s.remote) == 0 {
		s = nil
	}
	a.state.Store(&found{snap.Changed(), s})
	return s
}

// Ours says that a group is served here whatever its APIServices say. With another server for APIServices nobody could take that back.
func Ours(group string) bool { return group == "" || group == apiregistrationv1.GroupName }

// Remote returns the APIServices of what is served elsewhere, by name. Those of groups that are Ours are not among them.
func (s *State) Remote() []*Service { return s.remote }

// At returns the APIService of the server for the version of a group, nil for what is served here.
func (s *State) At(gv schema.GroupVersion) *Service {
	if s == nil || Ours(gv.Group) {
		return nil
	}
	if svc := s.all[gv]; svc != nil && svc.Spec.Service != nil {
		return svc
	}
	return nil
}

// ForPath is At for the path of a request: /apis/GROUP/VERSION and what is below it.
func (s *State) ForPath(path string) *Service {
	if s == nil {
		return nil
	}
	rest, ok := strings.CutPrefix(path, "/apis/")
	if !ok {
		return nil
	}
	group, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return nil
	}
	version, _, _ := strings.Cut(rest, "/")
	return s.At(schema.GroupVersion{Group: group, Version: version})
}

// Default priorities: those of a version that no APIService names are a custom resource's.
const (
	customGroupPriority   = 1000
	customVersionPriority = 100
)

// Priorities returns those of the version of a group: the higher comes first, and of the same the first by name.
func (s *State) Priorities(gv schema.GroupVersion) (group, version int32) {
	if svc := s.all[gv]; svc != nil {
		return svc.Spec.GroupPriorityMinimum, svc.Spec.VersionPriority
	}
	return customGroupPriority, customVersionPriority
}

// Discovery returns what the server of a remote APIService says that it serves. It is marked stale where the server could not be asked.
func (s *State) Discovery(svc *Service) apidiscoveryv2.APIVersionDiscovery {
	if t, ok := s.told[svc.Name]; ok && t.uid == string(svc.UID) {
		return t.version
	}
	return apidiscoveryv2.APIVersionDiscovery{Version: svc.Spec.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessStale}
}

// available says whether the APIService's server may be asked.
func available(svc *Service) bool {
	c := condition(svc)
	return c != nil && c.Status == apiregistrationv1.ConditionTrue
}

func condition(svc *Service) *apiregistrationv1.APIServiceCondition {
	i := slices.IndexFunc(svc.Status.Conditions, func(c apiregistrationv1.APIServiceCondition) bool { return c.Type == apiregistrationv1.Available })
	if i < 0 {
		return nil
	}
	return &svc.Status.Conditions[i]
}

// target is where the server of a remote APIService is.
func target(svc *Service) callout.Target {
	t := callout.Target{
		Namespace: svc.Spec.Service.Namespace, Name: svc.Spec.Service.Name,
		CABundle: svc.Spec.CABundle, Insecure: svc.Spec.InsecureSkipTLSVerify,
	}
	if p := svc.Spec.Service.Port; p != nil {
		t.Port = *p
	}
	return t
}
