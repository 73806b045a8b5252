package builtin

import (
	"context"
	"fmt"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
)

// Who makes a policy read parameters must be able to read these: policies tell their users what they read.

// resourceOf is what a kind is called in requests, "*" where the kind is not known.
func resourceOf(k *admissionv1.ParamKind) (group, version, resource string, err error) {
	gv, err := schema.ParseGroupVersion(k.APIVersion)
	if err != nil {
		return wildcard, wildcard, wildcard, err
	}
	for _, s := range api.Stored() {
		if slices.ContainsFunc(s.Forms(), func(f *api.Kind) bool { return f.GVK() == gv.WithKind(k.Kind) }) {
			return gv.Group, gv.Version, s.Plural, nil
		}
	}
	return gv.Group, gv.Version, wildcard, fmt.Errorf("no kind %s in %s", k.Kind, k.APIVersion)
}

// asUpstream is a user as upstream's messages show it.
func asUpstream(u *authn.User) string {
	return fmt.Sprintf("&{%s %s %v %v}", u.Name, u.UID, u.Groups, u.Extra)
}

func (d Deps) mayReadKind(ctx context.Context, now, was *admissionv1.ParamKind) field.ErrorList {
	u := authn.UserFrom(ctx)
	if now == nil || was != nil && *now == *was || u.In(authn.Masters) {
		return nil
	}
	at := field.NewPath("spec", "paramKind")
	group, version, resource, _ := resourceOf(now) // requests about all resources where it is unknown
	ok, _, err := d.Access.Authorize(ctx, &authz.Attributes{User: u, Verb: "get", Group: group, Version: version, Resource: resource, Namespace: wildcard, Name: wildcard})
	switch {
	case err != nil:
		return field.ErrorList{field.Forbidden(at, err.Error())}
	case !ok:
		return field.ErrorList{field.Forbidden(at, fmt.Sprintf(`user %s must have "get" permission on all objects of the referenced paramKind (kind=%s, apiVersion=%s)`,
			asUpstream(u), now.Kind, now.APIVersion))}
	}
	return nil
}

// mayReadParam asks for the parameters of a binding; kind is the policy's, if there is such a policy.
func (d Deps) mayReadParam(ctx context.Context, policy string, ref *admissionv1.ParamRef, kind func() (*admissionv1.ParamKind, bool)) field.ErrorList {
	u := authn.UserFrom(ctx)
	if ref == nil || u.In(authn.Masters) {
		return nil
	}
	at := field.NewPath("spec", "paramRef")
	group, version, resource := wildcard, wildcard, wildcard
	k, exists := kind()
	var unresolved error
	if k != nil {
		group, version, resource, unresolved = resourceOf(k)
	}
	verb := "get"
	if ref.Name == "" {
		verb = "list"
	}
	ok, _, err := d.Access.Authorize(ctx, &authz.Attributes{User: u, Verb: verb, Group: group, Version: version, Resource: resource, Namespace: ref.Namespace, Name: ref.Name})
	if err != nil {
		return field.ErrorList{field.Forbidden(at, "failed to authorize request: "+err.Error())}
	}
	if ok {
		return nil
	}
	all := fmt.Sprintf(`to determine minimum required permissions and user %s does not have "%s" permission for all groups, versions and resources`, asUpstream(u), verb)
	switch {
	case !exists:
		return field.ErrorList{field.Forbidden(at, fmt.Sprintf("unable to get policy %s %s", policy, all))}
	case unresolved != nil:
		return field.ErrorList{field.Forbidden(at, fmt.Sprintf("unable to resolve paramKind &ParamKind{APIVersion:%s,Kind:%s,} %s", k.APIVersion, k.Kind, all))}
	}
	return field.ErrorList{field.Forbidden(at, fmt.Sprintf(`user %s does not have "%s" permission on the object referenced by paramRef`, asUpstream(u), verb))}
}
