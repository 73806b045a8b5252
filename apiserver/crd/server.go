package crd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// Deps are what a Server needs.
type Deps struct {
	Store *store.Store
	// Serve replaces the custom resources that the API server serves: apiserver.Server's.
	Serve func([]rest.Any) error
	// Remove deletes what goes with its definition: apiserver.Server's.
	Remove func(ctx context.Context, a rest.Any, key api.Key) error
	// Client writes the status of definitions, of all.
	Client client.Client
	// Hooks reaches conversion webhooks. May be nil: then every conversion by webhook fails.
	Hooks *callout.Callout
	Log   *slog.Logger
}

// Server keeps what is served as the definitions in the store are. It is a run.Component.
type Server struct {
	d Deps
	// served are the definitions that are served, by name. Only Run's goroutine has them.
	served map[string]*served
	ending map[types.UID]context.CancelFunc // definitions whose objects are being deleted
	work   sync.WaitGroup
}

// served is a definition that is served.
type served struct {
	crd    *apiextensionsv1.CustomResourceDefinition
	stored *api.Kind
	kinds  []rest.Any
	keep   rest.Any // of the storage version, be it served or not
	// serving is what watches live in until end is called.
	serving context.Context
	end     context.CancelFunc
}

// retryAfter is how long what failed waits for another attempt.
const retryAfter = time.Second

// readers is how many definitions are read the objects of at once.
const readers = 8

// NewServer returns a Server that serves nothing yet.
func NewServer(d Deps) *Server {
	return &Server{d: d, served: map[string]*served{}, ending: map[types.UID]context.CancelFunc{}}
}

// Name is the component's name.
func (*Server) Name() string { return "customresources" }

// Run serves what is defined, is ready, and follows the definitions until ctx ends.
func (s *Server) Run(ctx context.Context, ready func()) error {
	defer s.work.Wait()
	for ctx.Err() == nil {
		rev := s.d.Store.Revision()
		w, err := s.d.Store.Watch(api.CustomResourceDefinitionKind, rev, 0)
		if err != nil {
			return fmt.Errorf("follow definitions: %w", err)
		}
		served, again := s.sync(ctx)
		if ready != nil && served {
			ready()
			ready = nil
		}
		if again {
			_ = run.Pause(ctx, retryAfter)
			continue
		}
		_, _, err = w.Next(ctx) // that something changed; a watch that is too slow begins again
		if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrSlow) {
			return fmt.Errorf("follow definitions: %w", err)
		}
	}
	return nil
}

// sync serves what is defined now, says so in the definitions, and sees to it that those that are deleted end. It says whether all
// is served that can be, and whether something failed that another attempt may do.
func (s *Server) sync(ctx context.Context) (all, again bool) {
	var defined []*apiextensionsv1.CustomResourceDefinition
	for e := range s.d.Store.Snapshot(api.CustomResourceDefinitionKind).All("", api.Key{}) {
		defined = append(defined, e.Object.(*apiextensionsv1.CustomResourceDefinition))
	}
	next, unread := s.next(ctx, defined)
	again = len(unread) > 0
	for name, old := range s.served { // before others can write what the schema of old does not know
		if now := next[name]; now != nil && now.stored == old.stored && now.serving != old.serving {
			old.end()
		}
	}
	if !maps.Equal(next, s.served) {
		if err := s.d.Serve(ordered(next)); err != nil {
			s.d.Log.Warn("custom resources are not served", "err", err)
			return false, true
		}
	}
	for name, old := range s.served {
		if now := next[name]; now == nil || now.stored != old.stored {
			s.d.Store.Remove(old.stored) // which ends its watches after their last event
		}
	}
	s.served, all = next, !again
	s.forget(defined)
	for _, c := range defined {
		if unread[c.Name] {
			continue // to let it go now would leave its objects
		}
		if err := s.tend(ctx, c); err != nil && ctx.Err() == nil {
			s.d.Log.Warn("definition is not finished", "definition", c.Name, "err", err)
			again = true
		}
	}
	return all, again
}

// next returns, by name, what is to be served of what is defined. Unread are the definitions that could not be: they may have objects
// that nobody here sees.
func (s *Server) next(ctx context.Context, defined []*apiextensionsv1.CustomResourceDefinition) (next map[string]*served, unread map[string]bool) {
	next, unread = make(map[string]*served, len(defined)), map[string]bool{}
	var mu sync.Mutex // of the maps
	var all errgroup.Group
	all.SetLimit(readers)
	for _, c := range defined {
		if !accepted(c) {
			continue
		}
		if old := s.same(c); old != nil {
			mu.Lock()
			next[c.Name] = old
			mu.Unlock()
			continue
		}
		all.Go(func() error {
			now, err := s.serving(ctx, c)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				next[c.Name] = now
			case !errors.Is(err, store.ErrTaken):
				unread[c.Name] = true
			}
			if err != nil {
				s.d.Log.Warn("custom resources are not served", "definition", c.Name, "err", err)
			}
			return nil
		})
	}
	_ = all.Wait() // all errors are told
	return next, unread
}

// same returns c as it is served where nothing has changed that matters to that, nil otherwise.
func (s *Server) same(c *apiextensionsv1.CustomResourceDefinition) *served {
	old := s.served[c.Name]
	if old == nil || old.crd.UID != c.UID || differs(old.crd, c) {
		return nil
	}
	old.crd = c // which makes the next comparison one of pointers
	return old
}

// forget drops what is known of definitions that are gone.
func (s *Server) forget(defined []*apiextensionsv1.CustomResourceDefinition) {
	for uid, cancel := range s.ending {
		if !slices.ContainsFunc(defined, func(c *apiextensionsv1.CustomResourceDefinition) bool { return c.UID == uid }) {
			cancel()
			delete(s.ending, uid)
		}
	}
}

// accepted says that c is to be served: its names are its own, or were and it was served by them.
func accepted(c *apiextensionsv1.CustomResourceDefinition) bool {
	n := c.Status.AcceptedNames
	return n.Plural != "" && n.Singular != "" && n.Kind != "" && n.ListKind != "" &&
		(apihelpers.IsCRDConditionTrue(c, apiextensionsv1.NamesAccepted) || apihelpers.IsCRDConditionTrue(c, apiextensionsv1.Established))
}

// serving returns c as it is served from now on. Of different definitions, it may be called concurrently.
func (s *Server) serving(ctx context.Context, c *apiextensionsv1.CustomResourceDefinition) (*served, error) {
	old := s.served[c.Name]
	if old != nil && old.crd.UID == c.UID {
		now := &served{crd: c, stored: old.stored, serving: old.serving, end: old.end}
		if another(old.crd, c) {
			now.open(ctx)
		}
		now.kinds, now.keep = Kinds(ctx, now.serving, c, now.stored, s.d.Hooks)
		return now, nil
	}
	if old != nil { // deleted and defined again
		s.d.Store.Remove(old.stored)
	}
	version, err := apihelpers.GetCRDStorageVersion(c)
	if err != nil {
		return nil, err
	}
	stored := api.Defined(c, version)
	if err := s.d.Store.Add(ctx, stored); err != nil {
		return nil, err
	}
	now := &served{crd: c, stored: stored}
	now.open(ctx)
	now.kinds, now.keep = Kinds(ctx, now.serving, c, stored, s.d.Hooks)
	return now, nil
}

// open begins what watches live in. It is not below ctx, which would keep that of every definition that ever was: when a definition
// goes, its watches end after their last event instead.
func (d *served) open(ctx context.Context) {
	d.serving, d.end = context.WithCancel(context.WithoutCancel(ctx))
}

// differs says that b is not served as a is.
func differs(a, b *apiextensionsv1.CustomResourceDefinition) bool {
	if a == b {
		return false
	}
	ending := func(c *apiextensionsv1.CustomResourceDefinition) bool {
		return c.DeletionTimestamp != nil || apihelpers.IsCRDConditionTrue(c, apiextensionsv1.Terminating)
	}
	return ending(a) != ending(b) || another(a, b)
}

// another says that objects are others by b than by a, so that who watches them has to begin anew. Its end alone makes no other
// definition: who watches is told of the end of each object.
func another(a, b *apiextensionsv1.CustomResourceDefinition) bool {
	return a.Generation != b.Generation && !equality.Semantic.DeepEqual(a.Spec, b.Spec) || !equality.Semantic.DeepEqual(a.Status.AcceptedNames, b.Status.AcceptedNames)
}

// ordered returns the kinds of all in the order of discovery: by group, and within it by name.
func ordered(all map[string]*served) []rest.Any {
	list := make([]*served, 0, len(all))
	for _, d := range all {
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b *served) int {
		return cmp.Or(strings.Compare(a.crd.Spec.Group, b.crd.Spec.Group), strings.Compare(a.crd.Name, b.crd.Name))
	})
	var kinds []rest.Any
	for _, d := range list {
		kinds = append(kinds, d.kinds...)
	}
	return kinds
}

// tend establishes a definition that is served, and begins to end one that is deleted.
func (s *Server) tend(ctx context.Context, c *apiextensionsv1.CustomResourceDefinition) error {
	if c.DeletionTimestamp != nil {
		s.end(ctx, c)
		return nil
	}
	if s.served[c.Name] == nil || apihelpers.IsCRDConditionTrue(c, apiextensionsv1.Established) || !apihelpers.IsCRDConditionTrue(c, apiextensionsv1.NamesAccepted) {
		return nil
	}
	return s.say(ctx, c, apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue, Reason: "InitialNamesAccepted", Message: "the initial names have been accepted",
	})
}

// say sets a condition of c. Who changed it meanwhile wakes us again.
func (s *Server) say(ctx context.Context, c *apiextensionsv1.CustomResourceDefinition, condition apiextensionsv1.CustomResourceDefinitionCondition) error {
	_, err := client.Mutate(ctx, s.d.Client, c, "status", func(c *apiextensionsv1.CustomResourceDefinition) { apihelpers.SetCRDCondition(c, condition) })
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
