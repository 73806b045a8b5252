package rest

import (
	"fmt"
	"iter"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

const (
	byName      = "metadata.name"
	byNamespace = "metadata.namespace"
	byNode      = "spec.nodeName"
	byInvolved  = "involvedObject.uid"
)

// Indexes are the field selectors that are served from an index. They are to be given to the Store as
// store.Options.Indexes.
func Indexes() map[*api.Kind]map[string]func(api.Object) string {
	return map[*api.Kind]map[string]func(api.Object) string{
		api.PodKind: {byNode: func(o api.Object) string { return o.(*corev1.Pod).Spec.NodeName }},
		api.EventKind: {byInvolved: func(o api.Object) string {
			return string(o.(*corev1.Event).InvolvedObject.UID)
		}},
	}
}

func indexed(k *api.Kind, field string) bool {
	return k == api.PodKind && field == byNode || k == api.EventKind && field == byInvolved
}

// Selection says which objects of a kind are meant, beside the namespace and name in the request's Key.
type Selection struct {
	Labels labels.Selector // nil: any
	Fields fields.Selector // nil: any
	Owner  types.UID       // not empty: dependents of this object
}

// selector is a Selection made ready for one kind.
type selector struct {
	Selection
	key       api.Key // as far as it is set
	index     string  // a field served by the index, with value
	value     string
	selective bool // selectors beside the key
	e         *erased
}

// compile checks that the kind has the fields that are selected by.
func (r *Request) compile(s Selection) (*selector, error) {
	c := &selector{Selection: s, key: r.Key, e: r.Any.r}
	if s.Labels != nil && s.Labels.Empty() {
		c.Labels = nil
	}
	if s.Fields != nil && s.Fields.Empty() {
		c.Fields = nil
	}
	c.selective = c.Labels != nil || c.Fields != nil || c.Owner != ""
	if c.Fields == nil {
		return c, nil
	}
	var known fields.Set
	if c.e.fields != nil {
		known = c.e.fields(r.Any.Kind.New())
	}
	for _, q := range c.Fields.Requirements() {
		if _, ok := known[q.Field]; !ok && q.Field != byName && q.Field != byNamespace {
			if known != nil || c.e.custom != nil {
				return nil, apierrors.NewBadRequest("field label not supported: " + q.Field)
			}
			return nil, apierrors.NewBadRequest(fmt.Sprintf("%q is not a known field selector: only %q, %q", q.Field, byName, byNamespace))
		}
	}
	if name, ok := c.Fields.RequiresExactMatch(byName); ok && name != "" && c.key.Name == "" {
		c.key.Name = name
	}
	if ns, ok := c.Fields.RequiresExactMatch(byNamespace); ok && ns != "" && c.key.Namespace == "" {
		c.key.Namespace = ns
	}
	for _, q := range c.Fields.Requirements() {
		if v, ok := c.Fields.RequiresExactMatch(q.Field); ok && v != "" && indexed(r.Any.Kind, q.Field) {
			c.index, c.value = q.Field, v
		}
	}
	return c, nil
}

// byContent says that objects of a custom kind have to be seen in the request's version to be selected.
func (c *selector) byContent() bool { return c.Fields != nil && c.e.custom != nil && c.e.fields != nil }

// outward leaves out what is not selected whatever stands in it beside the metadata.
func (c *selector) outward(es iter.Seq[*store.Entry]) iter.Seq[*store.Entry] {
	if c.e.custom == nil {
		return es
	}
	return func(yield func(*store.Entry) bool) {
		for e := range es {
			if c.matchMeta(e.Object) && !yield(e) {
				return
			}
		}
	}
}

// match says whether o is selected.
func (c *selector) match(o api.Object) bool {
	if !c.matchMeta(o) {
		return false
	}
	if c.Fields == nil {
		return true
	}
	var set fields.Set
	if c.e.fields != nil {
		set = c.e.fields(o)
	}
	if set == nil {
		set = fields.Set{}
	}
	set[byName], set[byNamespace] = o.GetName(), o.GetNamespace()
	return c.Fields.Matches(set)
}

// matchMeta says whether o is selected as far as its names, labels and owners go.
func (c *selector) matchMeta(o api.Object) bool {
	if c.key.Namespace != "" && o.GetNamespace() != c.key.Namespace || c.key.Name != "" && o.GetName() != c.key.Name {
		return false
	}
	if c.Labels != nil && !c.Labels.Matches(labels.Set(o.GetLabels())) {
		return false
	}
	return c.Owner == "" || ownedBy(o, c.Owner)
}

func ownedBy(o api.Object, uid types.UID) bool {
	for _, ref := range o.GetOwnerReferences() {
		if ref.UID == uid {
			return true
		}
	}
	return false
}

// candidates yields the entries among which the selected ones are, in order, by the best way there is.
func (c *selector) candidates(s store.Snapshot, namespaced bool, after api.Key) iter.Seq[*store.Entry] {
	switch {
	case c.key.Name != "" && (c.key.Namespace != "" || !namespaced):
		return func(yield func(*store.Entry) bool) {
			if e := s.Get(c.key); e != nil && e.Err() == nil && after.Compare(e.Key) < 0 {
				yield(e)
			}
		}
	case c.Owner != "":
		return beyond(s.Owned(c.Owner), after)
	case c.index != "":
		return beyond(s.Indexed(c.index, c.value), after)
	}
	return s.All(c.key.Namespace, after)
}

// beyond leaves out what does not come after the key.
func beyond(es iter.Seq[*store.Entry], after api.Key) iter.Seq[*store.Entry] {
	return func(yield func(*store.Entry) bool) {
		for e := range es {
			if e.Err() == nil && after.Compare(e.Key) < 0 && !yield(e) {
				return
			}
		}
	}
}
