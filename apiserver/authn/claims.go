package authn

import (
	"context"
	"errors"
	"fmt"

	celgo "github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	config "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/cel"
	kubecel "k8s.io/apiserver/pkg/cel"
)

// mapping makes users of claims, by what the configuration names and by its expressions.
type mapping struct {
	config *config.JWTAuthenticator
	cel    cel.CELMapper
}

// user returns whom the claims describe, if they and the user are as the configuration wants them.
func (m *mapping) user(ctx context.Context, claims map[string]any) (*User, error) {
	values := celMap(claims)
	u := &User{Extra: map[string][]string{}}
	if id, ok := claims["jti"].(string); ok && id != "" {
		u.Extra[CredentialID] = []string{"JTI=" + id}
	}
	for _, part := range []func(context.Context, map[string]any, traits.Mapper, *User) error{m.name, m.groups, m.uid, m.extra, m.checkClaims} {
		if err := part(ctx, claims, values, u); err != nil {
			return nil, err
		}
	}
	if m.cel.UserValidationRules != nil {
		results, err := m.cel.UserValidationRules.EvalUser(ctx, celMap(map[string]any{"username": u.Name, "uid": u.UID, "groups": u.Groups, "extra": u.Extra}))
		if err == nil {
			err = allTrue(results)
		}
		if err != nil {
			return nil, fmt.Errorf("error evaluating user info validation rule: %w", err)
		}
	}
	if len(u.Extra) == 0 {
		u.Extra = nil
	}
	return u, nil
}

func (m *mapping) name(ctx context.Context, claims map[string]any, values traits.Mapper, u *User) error {
	c := &m.config.ClaimMappings.Username
	if m.cel.Username != nil {
		name, err := celText(ctx, m.cel.Username, values)
		if err != nil {
			return fmt.Errorf("error evaluating username claim expression: %w", err)
		}
		if name == "" {
			return errors.New("empty username via CEL expression is not allowed")
		}
		u.Name = name
		return nil
	}
	name, ok := claims[c.Claim].(string)
	if !ok || name == "" {
		return fmt.Errorf("parse username claims %q: claim not present or not a string", c.Claim)
	}
	if verified, present := claims["email_verified"]; c.Claim == "email" && present && verified != true {
		return errors.New("email not verified")
	}
	u.Name = prefix(c.Prefix) + name
	return nil
}

func (m *mapping) groups(ctx context.Context, claims map[string]any, values traits.Mapper, u *User) (err error) {
	c := &m.config.ClaimMappings.Groups
	if c.Claim != "" && claims[c.Claim] != nil {
		groups, err := texts(claims[c.Claim])
		if err != nil {
			return fmt.Errorf("parse groups claim %q: %w", c.Claim, err)
		}
		for _, g := range groups {
			u.Groups = append(u.Groups, prefix(c.Prefix)+g)
		}
		return nil
	}
	if m.cel.Groups == nil {
		return nil
	}
	result, err := m.cel.Groups.EvalClaimMapping(ctx, values)
	if err == nil {
		u.Groups, err = celTexts(result.EvalResult)
	}
	if err != nil {
		return fmt.Errorf("error evaluating group claim expression: %w", err)
	}
	return nil
}

func (m *mapping) uid(ctx context.Context, claims map[string]any, values traits.Mapper, u *User) (err error) {
	if c := m.config.ClaimMappings.UID.Claim; c != "" {
		var ok bool
		if u.UID, ok = claims[c].(string); !ok {
			return fmt.Errorf("parse uid claim %q: claim not present or not a string", c)
		}
		return nil
	}
	if m.cel.UID == nil {
		return nil
	}
	if u.UID, err = celText(ctx, m.cel.UID, values); err != nil {
		return fmt.Errorf("error evaluating uid claim expression: %w", err)
	}
	return nil
}

func (m *mapping) extra(ctx context.Context, _ map[string]any, values traits.Mapper, u *User) error {
	if m.cel.Extra == nil {
		return nil
	}
	results, err := m.cel.Extra.EvalClaimMappings(ctx, values)
	if err != nil {
		return fmt.Errorf("error evaluating extra claim expression: %w", err)
	}
	for _, r := range results {
		extra, ok := r.ExpressionAccessor.(*cel.ExtraMappingExpression)
		if !ok {
			return fmt.Errorf("error evaluating extra claim expression: %T is none", r.ExpressionAccessor)
		}
		values, err := celTexts(r.EvalResult)
		if err != nil {
			return fmt.Errorf("error evaluating extra claim expression: %s: %w", extra.Expression, err)
		}
		if len(values) > 0 {
			u.Extra[extra.Key] = values
		}
	}
	return nil
}

// checkClaims refuses claims that do not have the values that are wanted.
func (m *mapping) checkClaims(ctx context.Context, claims map[string]any, values traits.Mapper, _ *User) error {
	for _, r := range m.config.ClaimValidationRules {
		if r.Claim == "" {
			continue
		}
		if value, ok := claims[r.Claim].(string); !ok {
			return fmt.Errorf("required claim %s not present in ID token", r.Claim)
		} else if value != r.RequiredValue {
			return fmt.Errorf("required claim %s value does not match. Got = %s, want = %s", r.Claim, value, r.RequiredValue)
		}
	}
	if m.cel.ClaimValidationRules == nil {
		return nil
	}
	results, err := m.cel.ClaimValidationRules.EvalClaimMappings(ctx, values)
	if err == nil {
		err = allTrue(results)
	}
	if err != nil {
		return fmt.Errorf("error evaluating claim validation expression: %w", err)
	}
	return nil
}

func prefix(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}

// texts reads a claim that is one string or several.
func texts(v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case []any:
		var all []string
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil, fmt.Errorf("%v is not a string", x)
			}
			all = append(all, s)
		}
		return all, nil
	}
	return nil, errors.New("neither a string nor a list of strings")
}

// allTrue is an error unless every rule holds.
func allTrue(results []cel.EvaluationResult) error {
	for _, r := range results {
		if r.EvalResult.Type() != celgo.BoolType {
			return errors.New("validation expression must return a boolean")
		}
		if r.EvalResult != types.True {
			message := ""
			switch rule := r.ExpressionAccessor.(type) {
			case *cel.ClaimValidationCondition:
				message = rule.Message
			case *cel.UserValidationCondition:
				message = rule.Message
			}
			return fmt.Errorf("validation expression '%s' failed: %s", r.ExpressionAccessor.GetExpression(), message)
		}
	}
	return nil
}

func celText(ctx context.Context, m cel.ClaimsMapper, values traits.Mapper) (string, error) {
	result, err := m.EvalClaimMapping(ctx, values)
	if err != nil {
		return "", err
	}
	s, ok := result.EvalResult.(types.String)
	if !ok {
		return "", errors.New("the expression must return a string")
	}
	return string(s), nil
}

// celTexts reads a value that is one string, several, or null. Empty ones do not count.
func celTexts(v ref.Val) (all []string, err error) {
	add := func(v ref.Val) {
		switch s, ok := v.(types.String); {
		case !ok:
			err = errors.New("expression must return a string or a list of strings")
		case s != "":
			all = append(all, string(s))
		}
	}
	switch v := v.(type) {
	case types.Null:
	case traits.Lister:
		for i := v.Iterator(); i.HasNext() == types.True; {
			add(i.Next())
		}
	default:
		add(v)
	}
	return all, err
}

// celMap is a map for expressions. Within its values, names that are no identifiers may be written as in all of Kubernetes'
// expressions: a__dot__b for "a.b".
func celMap(m map[string]any) traits.Mapper {
	values := map[ref.Val]ref.Val{}
	for k, v := range m {
		values[types.String(k)] = unescaping(types.DefaultTypeAdapter.NativeToValue(v))
	}
	return types.NewRefValMap(types.DefaultTypeAdapter, values)
}

func unescaping(v ref.Val) ref.Val {
	switch v := v.(type) {
	case traits.Mapper:
		return unescapingMap{v}
	case traits.Lister:
		return unescapingList{v}
	}
	return v
}

type unescapingMap struct{ traits.Mapper }

// Find implements traits.Mapper.
func (m unescapingMap) Find(key ref.Val) (ref.Val, bool) {
	if s, ok := key.(types.String); ok {
		if name, ok := kubecel.Unescape(string(s)); ok {
			key = types.String(name)
		}
	}
	v, ok := m.Mapper.Find(key)
	return unescaping(v), ok
}

type unescapingList struct{ traits.Lister }

// Get implements traits.Indexer.
func (l unescapingList) Get(index ref.Val) ref.Val { return unescaping(l.Lister.Get(index)) }
