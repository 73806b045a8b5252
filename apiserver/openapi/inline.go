package openapi

import (
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/yare-dev/yare/api"
)

// Inline returns the schema of a kind without references: a type within itself is an object of which nothing is known. It has no
// descriptions.
func Inline(k *api.Kind) (*spec.Schema, error) {
	b := &builder{form: V2, made: Doc{}}
	text, err := json.Marshal(b.resolve(b.define(structOf(k.New())), map[string]bool{}))
	if err != nil {
		return nil, fmt.Errorf("make the schema of %v: %w", k, err)
	}
	s := new(spec.Schema)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("read the schema of %v: %w", k, err)
	}
	return s, nil
}

// resolve returns v with what it refers to in the place of references. Within are the names of the types that v is in.
func (b *builder) resolve(v any, within map[string]bool) any {
	switch v := v.(type) {
	case Doc:
		if ref, ok := v["$ref"].(string); ok {
			name := strings.TrimPrefix(ref, b.form.root())
			if within[name] {
				return Doc{"type": "object"}
			}
			within[name] = true
			defer delete(within, name)
			return b.resolve(b.made[name], within)
		}
		out := make(Doc, len(v))
		for key, inner := range v {
			if _, text := inner.(string); key != "description" || !text {
				out[key] = b.resolve(inner, within)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = b.resolve(v[i], within)
		}
		return out
	}
	return v
}
