package api

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"sigs.k8s.io/yaml"
	yamlv2 "sigs.k8s.io/yaml/goyaml.v2"
)

// MostNested bounds how deep a CustomResourceDefinition goes, and a patch or apply of any kind, in levels of JSON or messages of
// protobuf. Schemas contain schemas, and what is done with one takes memory and time by its depth: the generated decoder of
// protobuf, the checks and copies recurse without a bound of their own, and the end of the stack is the end of the process.
// Definitions of the real world have less than a hundred levels. All other types bound their depth themselves; JSON, YAML and
// CBOR as such go 10,000 levels deep at most.
const MostNested = 256

var errNested = fmt.Errorf("nested deeper than %d levels", MostNested)

// nests says that o's type contains itself.
func nests(o any) bool {
	_, ok := o.(*apiextensionsv1.CustomResourceDefinition)
	return ok
}

// ShallowJSON refuses JSON that nests deeper than MostNested. Text that is no JSON is the decoder's to refuse.
func ShallowJSON(data []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted:
			if c == '\\' {
				i++
			}
			quoted = c != '"'
		case c == '"':
			quoted = true
		case c == '{' || c == '[':
			if depth++; depth > MostNested {
				return errNested
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// shallowCBOR refuses CBOR that nests too deep. What is no CBOR is the decoder's to refuse.
func shallowCBOR(data []byte) error {
	var v any
	if direct.Unmarshal(bytes.TrimPrefix(data, []byte(cborMagic)), &v) != nil {
		return nil
	}
	return Shallow(v)
}

// Shallow refuses a value as JSON has them that nests deeper than MostNested.
func Shallow(v any) error {
	if !shallow(v, MostNested) {
		return errNested
	}
	return nil
}

// cborMagic is the tag that opens every object in CBOR (RFC 8949, 3.4.6).
const cborMagic = "\xd9\xd9\xf7"

// shallow says that v, which JSON can say, has at most that many levels.
func shallow(v any, levels int) bool {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			if levels == 0 || !shallow(item, levels-1) {
				return false
			}
		}
	case map[string]any:
		for _, item := range v {
			if levels == 0 || !shallow(item, levels-1) {
				return false
			}
		}
	}
	return true
}

// shallowProto refuses protobuf that nests too deep. It takes every field with a length for a message, whatever its type: a text that
// reads as hundreds of messages within each other is not to be expected. Levels are left for that many more.
func shallowProto(data []byte, left int) error {
	if left == 0 {
		return errNested
	}
	for len(data) > 0 {
		tag, n := binary.Uvarint(data)
		if n <= 0 {
			return nil // no message
		}
		data = data[n:]
		switch tag & 7 {
		case 0:
			if _, n = binary.Uvarint(data); n <= 0 {
				return nil
			}
		case 1:
			n = 8
		case 2:
			size, w := binary.Uvarint(data)
			if w <= 0 || size > uint64(len(data)-w) {
				return nil
			}
			if err := shallowProto(data[w:w+int(size)], left-1); err != nil {
				return err
			}
			n = w + int(size)
		case 5:
			n = 4
		default: // groups, which no type has, begin and end without a length
			n = 0
		}
		if n > len(data) {
			return nil
		}
		data = data[n:]
	}
	return nil
}

// mostSchemas bounds how many schemas a definition has, and mostVersions its versions: what checks it makes a few kilobytes of each
// schema, and compares versions with each other. A database takes no definition that comes near them in earnest.
const (
	mostSchemas  = 50_000
	mostVersions = 1000
)

// Bounded refuses definitions that nest too deep or have too many schemas, however they came to be: by a patch or an apply too.
func Bounded(d *apiextensionsv1.CustomResourceDefinition) error {
	if len(d.Spec.Versions) > mostVersions {
		return fmt.Errorf("more than %d versions", mostVersions)
	}
	left := mostSchemas
	for i := range d.Spec.Versions {
		if v := d.Spec.Versions[i].Schema; v != nil {
			if err := bounded(v.OpenAPIV3Schema, MostNested, &left); err != nil {
				return err
			}
		}
	}
	return nil
}

// bounded counts s, which may have so many levels, and what it contains off left.
func bounded(s *apiextensionsv1.JSONSchemaProps, levels int, left *int) error {
	if s == nil {
		return nil
	}
	if *left--; *left < 0 {
		return fmt.Errorf("more than %d schemas", mostSchemas)
	}
	if levels == 0 {
		return errNested
	}
	for inner := range within(s) {
		if err := bounded(inner, levels-1, left); err != nil {
			return err
		}
	}
	return nil
}

// within are the schemas that stand in s itself; nil among them are none.
func within(s *apiextensionsv1.JSONSchemaProps) iter.Seq[*apiextensionsv1.JSONSchemaProps] {
	return func(yield func(*apiextensionsv1.JSONSchemaProps) bool) {
		all := func(l []apiextensionsv1.JSONSchemaProps) bool {
			for i := range l {
				if !yield(&l[i]) {
					return false
				}
			}
			return true
		}
		ok := yield(s.Not) && all(s.AllOf) && all(s.AnyOf) && all(s.OneOf)
		if s.Items != nil {
			ok = ok && yield(s.Items.Schema) && all(s.Items.JSONSchemas)
		}
		for _, b := range []*apiextensionsv1.JSONSchemaPropsOrBool{s.AdditionalProperties, s.AdditionalItems} {
			ok = ok && (b == nil || yield(b.Schema))
		}
		for _, m := range []map[string]apiextensionsv1.JSONSchemaProps{s.Properties, s.PatternProperties, s.Definitions} {
			for _, inner := range m {
				ok = ok && yield(&inner)
			}
		}
		for _, d := range s.Dependencies {
			ok = ok && yield(d.Schema)
		}
	}
}

// mostExpanded bounds the text, in bytes, that the aliases of a YAML document may make of it.
const mostExpanded = 16 << 20

// YAMLToJSON returns YAML as JSON. Strict are the errors of a document that can be read nevertheless: keys given twice. Aliases stand
// for what they name as often as they are given; the decoder bounds how many values they make, not how long these are.
func YAMLToJSON(data []byte) (json []byte, strict, err error) {
	if aliased(data) {
		var v any
		if err := yamlv2.Unmarshal(data, &v); err != nil {
			return nil, nil, err
		}
		if expanded(v, mostExpanded) < 0 {
			return nil, nil, errors.New("yaml: document contains excessive aliasing")
		}
	}
	if json, strict = yaml.YAMLToJSONStrict(data); strict == nil {
		return json, nil, nil
	}
	json, err = yaml.YAMLToJSON(data)
	return json, strict, err
}

// aliased says that the document may have aliases.
func aliased(data []byte) bool {
	var anchor, alias bool
	for _, c := range data {
		anchor, alias = anchor || c == '&', alias || c == '*'
	}
	return anchor && alias
}

// expanded is what is left of so many bytes after v was written, less than zero when it is more.
func expanded(v any, left int) int {
	if left--; left < 0 {
		return left
	}
	switch v := v.(type) {
	case string:
		return left - len(v)
	case []any:
		for _, item := range v {
			if left = expanded(item, left); left < 0 {
				return left
			}
		}
	case map[any]any:
		for key, item := range v {
			if left = expanded(item, expanded(key, left)); left < 0 {
				return left
			}
		}
	}
	return left
}
