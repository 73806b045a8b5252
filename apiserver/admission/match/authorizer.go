package match

import (
	"context"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
)

// Authorizer returns what expressions ask by their variable "authorizer".
func Authorizer(of authz.Authorizer) authorizer.UnconditionalAuthorizer {
	return authorizer.AuthorizerFunc(func(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
		u := a.GetUser()
		at := &authz.Attributes{User: &authn.User{Name: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: u.GetExtra()}, Verb: a.GetVerb()}
		if at.User.In(authn.Masters) {
			return authorizer.DecisionAllow, "", nil
		}
		if a.IsResourceRequest() {
			at.Group, at.Version, at.Resource, at.Subresource = a.GetAPIGroup(), a.GetAPIVersion(), a.GetResource(), a.GetSubresource()
			at.Namespace, at.Name = a.GetNamespace(), a.GetName()
			if reqs, err := a.GetFieldSelector(); err == nil && len(reqs) > 0 {
				at.Fields = selector(reqs)
			}
		} else {
			at.Path = a.GetPath()
		}
		ok, reason, err := of.Authorize(ctx, at)
		if ok {
			return authorizer.DecisionAllow, reason, nil
		}
		return authorizer.DecisionNoOpinion, reason, err
	})
}

func selector(reqs fields.Requirements) fields.Selector {
	var all []fields.Selector
	for _, r := range reqs {
		if r.Operator == selection.NotEquals {
			all = append(all, fields.OneTermNotEqualSelector(r.Field, r.Value))
		} else {
			all = append(all, fields.OneTermEqualSelector(r.Field, r.Value))
		}
	}
	return fields.AndSelectors(all...)
}
