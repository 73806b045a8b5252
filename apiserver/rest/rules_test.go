package rest_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// Rules of the pipeline that a kind declares.

func causes(err error) (all []string) {
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Details == nil {
		return []string{err.Error()}
	}
	for _, c := range status.Status().Details.Causes {
		all = append(all, c.Field+": "+c.Message)
	}
	return all
}

// What two checks find alike is told once.
func TestCausesOnce(t *testing.T) {
	wrong := func(*corev1.ConfigMap) field.ErrorList {
		return field.ErrorList{field.Required(field.NewPath("data"), "")}
	}
	kind := rest.Register(api.ConfigMapKind, &rest.Resource[*corev1.ConfigMap]{Validate: wrong, ValidateCreate: wrong})
	bubble(t, store.Options{}, nil, func(b *bench) {
		_, err := b.Create(b.ctx, request(kind, ""), configMap("c"))
		if got := causes(err); !slices.Equal(got, []string{"data: Required value"}) {
			t.Error(got)
		}
	})
}

// A name that follows from the rest of the object is checked in updates, which may change the rest.
func TestNameOf(t *testing.T) {
	kind := rest.Register(api.ConfigMapKind, &rest.Resource[*corev1.ConfigMap]{NameOf: func(o *corev1.ConfigMap, name string, _ bool) []string {
		if name != o.Data["name"] {
			return []string{"must be as the data says"}
		}
		return nil
	}})
	bubble(t, store.Options{}, nil, func(b *bench) {
		if _, err := b.Create(b.ctx, request(kind, ""), configMap("c", "name", "d")); !apierrors.IsInvalid(err) {
			t.Error(err)
		}
		b.create(kind, configMap("c", "name", "c"))
		if _, _, err := b.Update(b.ctx, request(kind, "c"), configMap("c", "name", "d")); !apierrors.IsInvalid(err) {
			t.Error(err)
		}
		if _, _, err := b.Update(b.ctx, request(kind, "c"), configMap("c", "name", "c", "more", "")); err != nil {
			t.Error(err)
		}
	})
}

// Who names no policy is told, once, that dependents stay.
func TestOrphanWarning(t *testing.T) {
	kind := rest.Register(api.ConfigMapKind, &rest.Resource[*corev1.ConfigMap]{Orphan: true, OrphanWarning: "they stay"})
	bubble(t, store.Options{}, nil, func(b *bench) {
		for _, name := range []string{"a", "b", "c"} {
			b.create(kind, configMap(name))
		}
		background := metav1.DeletePropagationBackground
		var warnings []string
		remove := func(name string, o metav1.DeleteOptions) {
			t.Helper()
			warnings = nil
			r := request(kind, name)
			r.Warn = func(text string) { warnings = append(warnings, text) }
			var err error
			if name == "" {
				_, err = b.DeleteCollection(b.ctx, r, &o, rest.ListOptions{})
			} else {
				_, err = b.Delete(b.ctx, r, &o)
			}
			if err != nil {
				t.Error(err)
			}
		}
		if remove("a", metav1.DeleteOptions{PropagationPolicy: &background}); len(warnings) > 0 {
			t.Error(warnings)
		}
		if remove("b", metav1.DeleteOptions{}); !slices.Equal(warnings, []string{"they stay"}) {
			t.Error(warnings)
		}
		if remove("", metav1.DeleteOptions{}); !slices.Equal(warnings, []string{"they stay"}) {
			t.Error(warnings)
		}
	})
}

// A kind with finalizers of its own knows no grace, and its deletion does not begin twice.
func TestOwnFinalizers(t *testing.T) {
	kind := rest.Register(api.ConfigMapKind, &rest.Resource[*corev1.ConfigMap]{Finalizing: func(o *corev1.ConfigMap) bool { return o.Data["held"] != "" }})
	bubble(t, store.Options{}, nil, func(b *bench) {
		b.create(kind, configMap("c", "held", "yes"))
		other := types.UID("other")
		_, err := b.Delete(b.ctx, request(kind, "c"), &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &other}})
		if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "Precondition failed: UID in precondition: other") {
			t.Error(err)
		}
		foreground := metav1.DeletePropagationForeground
		var last *rest.Deleted
		for _, o := range []metav1.DeleteOptions{{}, {PropagationPolicy: &foreground}} {
			if last, err = b.Delete(b.ctx, request(kind, "c"), &o); err != nil {
				t.Fatal(err)
			}
		}
		o := last.Entry.Object
		if last.Gone || o.GetDeletionTimestamp() == nil || o.GetDeletionGracePeriodSeconds() != nil || len(o.GetFinalizers()) > 0 {
			t.Errorf("gone %v, %+v", last.Gone, o)
		}
		if _, _, err := b.Update(b.ctx, request(kind, "c"), configMap("c")); err != nil {
			t.Error(err)
		}
		if _, err := b.Get(b.ctx, request(kind, "c"), ""); !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
}
