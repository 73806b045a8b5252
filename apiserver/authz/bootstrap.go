package authz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/component-helpers/auth/rbac/validation"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// Bootstrap makes the roles and bindings that every cluster has: it creates what is missing and adds the rules and
// subjects that somebody took away, unless the object's annotation rbac.authorization.kubernetes.io/autoupdate is
// "false". It never takes anything away. It is idempotent.
func Bootstrap(ctx context.Context, c client.Client) error {
	var todo []func() error
	for _, r := range ClusterRoles() {
		todo = append(todo, func() error { return ensure(ctx, c, r, mergeClusterRole) })
	}
	for _, b := range ClusterRoleBindings() {
		todo = append(todo, func() error {
			return ensure(ctx, c, b, func(now, want *rbacv1.ClusterRoleBinding) {
				now.Subjects = missingSubjects(now.Subjects, want.Subjects)
			})
		})
	}
	for _, r := range Roles() {
		todo = append(todo, func() error {
			return ensure(ctx, c, r, func(now, want *rbacv1.Role) { now.Rules = missingRules(now.Rules, want.Rules) })
		})
	}
	for _, b := range RoleBindings() {
		todo = append(todo, func() error {
			return ensure(ctx, c, b, func(now, want *rbacv1.RoleBinding) { now.Subjects = missingSubjects(now.Subjects, want.Subjects) })
		})
	}
	// Side by side, since what takes time is the disk, which commits many writes as fast as one.
	errs := make([]error, len(todo))
	var wg sync.WaitGroup
	for i, f := range todo {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ensureAttempts is how often an object is tried while others write it.
const ensureAttempts = 5

// ensure creates want, or merges it into what there is.
func ensure[T api.Object](ctx context.Context, c client.Client, want T, merge func(now, want T)) error {
	key := api.KeyOf(want)
	var err error
	for range ensureAttempts {
		var now T
		now, err = client.Get[T](ctx, c, key)
		switch {
		case apierrors.IsNotFound(err):
			_, err = client.Create(ctx, c, want.DeepCopyObject().(T))
		case err != nil:
		case now.GetAnnotations()[rbacv1.AutoUpdateAnnotationKey] == "false":
			return nil
		default:
			_, err = client.Mutate(ctx, c, now, "", func(o T) { merge(o, want) })
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("ensure %s %s: %w", api.KindOf(want), key, err)
	}
	return nil
}

func mergeClusterRole(now, want *rbacv1.ClusterRole) {
	for k, v := range want.Labels {
		if now.Labels == nil {
			now.Labels = map[string]string{}
		}
		now.Labels[k] = v
	}
	if want.AggregationRule != nil {
		// The rules are the aggregation controller's.
		if now.AggregationRule == nil {
			now.AggregationRule = want.AggregationRule
		}
		return
	}
	now.Rules = missingRules(now.Rules, want.Rules)
}

// missingRules adds to now what of want it does not cover.
func missingRules(now, want []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	_, missing := validation.Covers(now, want)
	if len(missing) == 0 {
		return now
	}
	// Whole rules read better than the atoms that are missing.
	for _, r := range want {
		if ok, _ := validation.Covers(now, []rbacv1.PolicyRule{r}); !ok {
			now = append(now, r)
		}
	}
	return now
}

func missingSubjects(now, want []rbacv1.Subject) []rbacv1.Subject {
	for _, s := range want {
		if !slices.Contains(now, s) {
			now = append(now, s)
		}
	}
	return now
}
