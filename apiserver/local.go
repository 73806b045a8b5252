package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// ClientAs returns a client that acts as u in this process. Its requests take the same way as those over HTTP, from
// authorization on; objects are passed without being copied or encoded. The Server need not be running for it, only
// the Store.
func (s *Server) ClientAs(u *authn.User) client.Client {
	return &local{s: s, user: u, manager: localManager(u.Name)}
}

// local is the in-process client.
type local struct {
	s       *Server
	user    *authn.User
	manager string
}

// localManager is the field manager of a component, called as upstream's program is.
func localManager(user string) string {
	switch {
	case strings.HasPrefix(user, "system:node:"):
		return "kubelet"
	case strings.HasPrefix(user, "system:serviceaccount:kube-system:"), user == "system:kube-controller-manager":
		return "kube-controller-manager"
	}
	return strings.TrimPrefix(user, "system:")
}

// request checks that the user may, and returns what the pipeline needs.
func (l *local) request(ctx context.Context, verb string, k *api.Kind, key api.Key, sub string) (context.Context, *rest.Request, error) {
	return l.selecting(ctx, verb, k, key, sub, client.Query{})
}

// selecting is request for a list or watch, whose selectors may decide what is allowed: a kubelet sees its own pods.
func (l *local) selecting(ctx context.Context, verb string, k *api.Kind, key api.Key, sub string, q client.Query) (context.Context, *rest.Request, error) {
	a, at, err := l.find(verb, k, key, sub)
	if err != nil {
		return ctx, nil, err
	}
	if at.Labels = q.Labels; q.Fields != nil {
		at.Fields = q.Fields
		at.Name, _ = q.Fields.RequiresExactMatch("metadata.name")
	}
	ctx = authn.WithUser(ctx, l.user)
	if err := l.s.authorize(ctx, at); err != nil {
		return ctx, nil, err
	}
	return ctx, &rest.Request{Any: a, Key: key, Sub: sub, Manager: l.manager}, nil
}

// find returns the kind's resource and what a request for it is about.
func (l *local) find(verb string, k *api.Kind, key api.Key, sub string) (rest.Any, *authz.Attributes, error) {
	a, ok := l.s.catalog.Load().of(k)
	if !ok || !a.Has(sub) {
		return rest.Any{}, nil, apierrors.NewNotFound(k.GroupResource(), key.Name)
	}
	if k.Namespaced && key.Namespace == "" && key.Name != "" {
		return rest.Any{}, nil, apierrors.NewBadRequest(fmt.Sprintf("an object of %v needs a namespace", k))
	}
	at := &authz.Attributes{
		User: l.user, Verb: verb, Group: k.Group, Version: k.Version, Resource: k.Plural, Subresource: sub,
		Namespace: key.Namespace, Name: key.Name,
	}
	if k == api.NamespaceKind {
		at.Namespace = key.Name
	}
	return a, at, nil
}

func (l *local) Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	ctx, r, err := l.request(ctx, "get", k, key, "")
	if err != nil {
		return nil, err
	}
	return object(l.s.pipe.Get(ctx, r, ""))
}

// object returns e's object.
func object(e *store.Entry, err error) (api.Object, error) {
	if err != nil {
		return nil, err
	}
	return e.Object, nil
}

func (l *local) List(ctx context.Context, k *api.Kind, q client.Query) ([]api.Object, api.Revision, error) {
	ctx, r, err := l.selecting(ctx, "list", k, api.Key{Namespace: q.Namespace}, "", q)
	if err != nil {
		return nil, 0, err
	}
	page, err := l.s.pipe.List(ctx, r, rest.ListOptions{Selection: selection(q)})
	if err != nil {
		return nil, 0, err
	}
	os := make([]api.Object, len(page.Entries))
	for i, e := range page.Entries {
		os[i] = e.Object
	}
	return os, page.Revision, nil
}

func selection(q client.Query) rest.Selection {
	return rest.Selection{Labels: q.Labels, Fields: q.Fields, Owner: q.Owner}
}

// Watch implements client.Reader. A reader that falls behind by more than the events that the store keeps is told the
// net changes since what it last saw; where even that state is no longer known, after the store's Keep, the watch
// ends with an error. A database without a majority is waited for, as long as ctx goes on: those who watch are to go on by themselves when it is back.
func (l *local) Watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	return func(yield func(client.Event, error) bool) {
		ctx, r, err := l.selecting(ctx, "watch", k, api.Key{Namespace: q.Namespace}, "", q)
		if err != nil {
			yield(client.Event{}, err)
			return
		}
		initial := from == 0
		o := rest.WatchOptions{Selection: selection(q), Mark: initial}
		if initial {
			o.Initial = &initial
		} else {
			o.Version = from.String()
		}
		for {
			w, err := patiently(ctx, func() (*rest.Watch, error) { return l.s.pipe.Watch(ctx, r, o) })
			if err != nil {
				if ctx.Err() == nil {
					yield(client.Event{}, err)
				}
				return
			}
			err = follow(ctx, w, yield)
			if errors.Is(err, io.EOF) { // the kind has become another, or is no more
				if _, r, err = l.selecting(ctx, "watch", k, api.Key{Namespace: q.Namespace}, "", q); err != nil {
					yield(client.Event{}, err)
					return
				}
				o = rest.WatchOptions{Selection: selection(q), Version: w.Told().String()}
				continue
			}
			if !apierrors.IsResourceExpired(err) {
				if err != nil && ctx.Err() == nil {
					yield(client.Event{}, err)
				}
				return
			}
			rev, ok, err := l.bridge(ctx, r, q, w.Told(), yield)
			if err != nil && ctx.Err() == nil {
				yield(client.Event{}, err)
			}
			if err != nil || !ok {
				return
			}
			o = rest.WatchOptions{Selection: selection(q), Version: rev.String()}
		}
	}
}

// patiently calls f until the database answers it, or ctx ends.
func patiently[T any](ctx context.Context, f func() (T, error)) (T, error) {
	for {
		out, err := f()
		silent := apierrors.IsServiceUnavailable(err) || apierrors.IsTimeout(err) && !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
		if !silent || run.Pause(ctx, time.Second) != nil {
			return out, err
		}
	}
}

// follow yields the watch's events. It returns nil when the caller wants no more.
func follow(ctx context.Context, w *rest.Watch, yield func(client.Event, error) bool) error {
	for {
		events, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, ev := range events {
			if out, ok := translate(ev); ok && !yield(out, nil) {
				return nil
			}
		}
	}
}

func translate(ev rest.Event) (client.Event, bool) {
	out := client.Event{Revision: ev.Revision}
	if ev.Old != nil {
		out.Old = ev.Old.Object
	}
	switch ev.Type {
	case watch.Added:
		out.Op, out.Old = client.Added, nil
	case watch.Modified:
		out.Op = client.Modified
	case watch.Deleted:
		out.Op = client.Deleted
	case watch.Bookmark:
		out.Op = client.Synced
		return out, ev.Complete
	}
	out.Object = ev.Entry.Object
	return out, true
}

// bridge yields the difference between the states at from and now, and returns the revision of now.
func (l *local) bridge(ctx context.Context, r *rest.Request, q client.Query, from api.Revision, yield func(client.Event, error) bool) (api.Revision, bool, error) {
	list := func(version string, match metav1.ResourceVersionMatch) (*rest.Page, error) {
		return patiently(ctx, func() (*rest.Page, error) {
			return l.s.pipe.List(ctx, r, rest.ListOptions{Selection: selection(q), Version: version, Match: match})
		})
	}
	before, err := list(from.String(), metav1.ResourceVersionMatchExact)
	if err != nil {
		return 0, false, err
	}
	after, err := list("", "")
	if err != nil {
		return 0, false, err
	}
	was := make(map[api.Key]*store.Entry, len(before.Entries))
	for _, e := range before.Entries {
		was[e.Key] = e
	}
	for _, e := range after.Entries {
		old := was[e.Key]
		delete(was, e.Key)
		ev := client.Event{Op: client.Added, Object: e.Object, Revision: e.Revision}
		switch {
		case old != nil && old.Revision == e.Revision:
			continue
		case old != nil && old.Object.GetUID() != e.Object.GetUID():
			if !yield(client.Event{Op: client.Deleted, Object: old.Object, Old: old.Object, Revision: e.Revision}, nil) {
				return 0, false, nil
			}
		case old != nil:
			ev.Op, ev.Old = client.Modified, old.Object
		}
		if !yield(ev, nil) {
			return 0, false, nil
		}
	}
	for _, old := range was {
		if !yield(client.Event{Op: client.Deleted, Object: old.Object, Old: old.Object, Revision: after.Revision}, nil) {
			return 0, false, nil
		}
	}
	return after.Revision, true, nil
}

func (l *local) Create(ctx context.Context, o api.Object) (api.Object, error) {
	k, err := l.kindOf(o)
	if err != nil {
		return nil, err
	}
	// The name is not attributed, as over HTTP, where it is in the body.
	w := write{verb: "create", kind: k, key: api.Key{Namespace: o.GetNamespace()}, sent: o}
	return l.write(ctx, w, func(ctx context.Context, r *rest.Request) (api.Object, error) {
		if !r.Any.Stored() {
			return posted(o)(l.s.pipe.Answer(ctx, r, o))
		}
		return object(l.s.pipe.Create(ctx, r, o))
	})
}

func (l *local) kindOf(o api.Object) (*api.Kind, error) {
	if k := l.s.catalog.Load().kindOf(o); k != nil {
		return k, nil
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("%T is no kind of the API", o))
}

func (l *local) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	k, err := l.kindOf(o)
	if err != nil {
		return nil, err
	}
	key := api.KeyOf(o)
	return l.write(ctx, write{verb: "update", kind: k, key: key, sub: sub, sent: o}, func(ctx context.Context, r *rest.Request) (api.Object, error) {
		r.MayCreate = l.mayCreate(k, key)
		e, _, err := l.s.pipe.Update(ctx, r, o)
		return object(e, err)
	})
}

// GetScale is part of client.Reader.
func (l *local) GetScale(ctx context.Context, k *api.Kind, key api.Key) (*autoscalingv1.Scale, error) {
	ctx, r, err := l.request(ctx, "get", k, key, "scale")
	if err != nil {
		return nil, err
	}
	return scale(object(l.s.pipe.GetScale(ctx, r, "")))
}

// UpdateScale is part of client.Writer.
func (l *local) UpdateScale(ctx context.Context, k *api.Kind, s *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
	return scale(l.write(ctx, write{verb: "update", kind: k, key: api.KeyOf(s), sub: "scale", sent: s}, func(ctx context.Context, r *rest.Request) (api.Object, error) {
		e, _, err := l.s.pipe.Update(ctx, r, s)
		return object(e, err)
	}))
}

func scale(o api.Object, err error) (*autoscalingv1.Scale, error) {
	if err != nil {
		return nil, err
	}
	return o.(*autoscalingv1.Scale), nil
}

func (l *local) mayCreate(k *api.Kind, key api.Key) func(context.Context) error {
	return func(ctx context.Context) error {
		_, _, err := l.request(ctx, "create", k, key, "")
		return err
	}
}

func (l *local) Patch(ctx context.Context, k *api.Kind, key api.Key, p client.Patch) (api.Object, error) {
	return l.write(ctx, write{verb: "patch", kind: k, key: key, sub: p.Sub, text: p.Data}, func(ctx context.Context, r *rest.Request) (api.Object, error) {
		if p.Manager != "" {
			r.Manager = p.Manager
		} else if p.Type == types.ApplyYAMLPatchType {
			r.Manager = ""
		}
		r.MayCreate = l.mayCreate(k, key)
		e, _, err := l.s.pipe.Patch(ctx, r, rest.Patch{Type: p.Type, Data: p.Data, Force: p.Force, Strict: metav1.FieldValidationStrict})
		return object(e, err)
	})
}

func (l *local) Delete(ctx context.Context, o api.Object, opts client.DeleteOptions) error {
	k, err := l.kindOf(o)
	if err != nil {
		return err
	}
	_, err = l.write(ctx, write{verb: "delete", kind: k, key: api.KeyOf(o)}, func(ctx context.Context, r *rest.Request) (api.Object, error) {
		_, err := l.s.pipe.Delete(ctx, r, opts.For(o))
		return nil, err
	})
	return err
}

func (l *local) Post(ctx context.Context, k *api.Kind, key api.Key, sub string, body api.Object) (api.Object, error) {
	return l.write(ctx, write{verb: "create", kind: k, key: key, sub: sub, sent: body}, func(ctx context.Context, r *rest.Request) (api.Object, error) {
		return posted(body)(l.s.pipe.Post(ctx, r, body, &metav1.CreateOptions{}))
	})
}

// posted is what the caller gets for a body: the object that it was answered with, or itself where that is a Status of success.
func posted(body api.Object) func(out runtime.Object, err error) (api.Object, error) {
	return func(out runtime.Object, err error) (api.Object, error) {
		if err != nil {
			return nil, err
		}
		switch o := out.(type) {
		case api.Object:
			return o, nil
		case *metav1.Status:
			if o.Status == metav1.StatusFailure {
				return nil, &apierrors.StatusError{ErrStatus: *o}
			}
			return body, nil
		}
		return nil, apierrors.NewInternalError(errors.New("a post was answered with what is no object"))
	}
}
