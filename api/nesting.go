package api

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"reflect"
	"strconv"
	"strings"
	"sync"

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

// mostObjects bounds the objects within one: an empty one takes two bytes to send and, as a container, a kilobyte to keep. What a
// database takes has fewer. Bodies that are too short to have as many are not looked at.
const (
	mostObjects = 100_000
	shortBody   = 2 * mostObjects
)

var (
	errNested = fmt.Errorf("nested deeper than %d levels", MostNested)
	errMany   = fmt.Errorf("more than %d objects", mostObjects)
)

// nests says that o's type contains itself.
func nests(o any) bool {
	_, ok := o.(*apiextensionsv1.CustomResourceDefinition)
	return ok
}

// bounds are what is left of levels and of objects.
type bounds struct{ levels, objects int }

// boundsOf are those of an encoding of o in so many bytes; not ok where there is nothing to look for.
func boundsOf(o any, size int) (b bounds, ok bool) {
	b = bounds{math.MaxInt, mostObjects}
	if nests(o) {
		b.levels = MostNested
	}
	return b, nests(o) || size > shortBody
}

// ShallowJSON refuses JSON that nests deeper than MostNested or has too many objects. Text that is no JSON is the decoder's to
// refuse.
func ShallowJSON(data []byte) error { return bounds{MostNested, mostObjects}.json(data) }

func (b bounds) json(data []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		c := data[i]
		if quoted {
			if c == '\\' {
				i++
			}
			quoted = c != '"'
			continue
		}
		switch c {
		case '"':
			quoted = true
		case '{', '[':
			if depth++; depth > b.levels {
				return errNested
			}
			if c == '{' {
				b.objects--
			}
		case '}', ']':
			depth--
		case 'n': // null, which is an empty object in a list of objects
			b.objects--
		}
		if b.objects < 0 {
			return errMany
		}
	}
	return nil
}

func (b bounds) cbor(data []byte) error {
	var v any
	if direct.Unmarshal(bytes.TrimPrefix(data, []byte(cborMagic)), &v) != nil {
		return nil // the decoder's to refuse
	}
	return b.value(v, b.levels)
}

// cborMagic is the tag that opens every object in CBOR (RFC 8949, 3.4.6).
const cborMagic = "\xd9\xd9\xf7"

// Shallow refuses a value as JSON has them that nests deeper than MostNested or has too many objects.
func Shallow(v any) error {
	b := bounds{MostNested, mostObjects}
	return b.value(v, b.levels)
}

// value looks at v, which may have so many levels.
func (b *bounds) value(v any, levels int) error {
	switch v := v.(type) {
	case nil:
		b.objects--
	case []any:
		if levels == 0 {
			return errNested
		}
		for _, item := range v {
			if err := b.value(item, levels-1); err != nil {
				return err
			}
		}
	case map[string]any:
		if b.objects--; levels == 0 {
			return errNested
		}
		for _, item := range v {
			if err := b.value(item, levels-1); err != nil {
				return err
			}
		}
	}
	if b.objects < 0 {
		return errMany
	}
	return nil
}

// proto looks at the encoding of a message of type t, which may have so many levels. What cannot be read is the decoder's to
// refuse: what comes before it counts.
func (b *bounds) proto(t reflect.Type, data []byte, levels int) error {
	if b.objects--; b.objects < 0 {
		return errMany
	}
	if levels == 0 {
		return errNested
	}
	messages := messagesOf(t)
	for len(data) > 0 {
		tag, n := binary.Uvarint(data)
		if n <= 0 {
			return nil
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
			n = w + int(size)
			if inner := messages[tag>>3]; inner != nil {
				if err := b.proto(inner, data[w:n], levels-1); err != nil {
					return err
				}
			}
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

// messageTypes remembers what messagesOf found: reflect.Type -> map[uint64]reflect.Type.
var messageTypes sync.Map

// messagesOf are the types of a message's fields that are messages, by number. A map's entry is a message of a key, 1, and a value, 2.
func messagesOf(t reflect.Type) map[uint64]reflect.Type {
	if known, ok := messageTypes.Load(t); ok {
		return known.(map[uint64]reflect.Type)
	}
	found := map[uint64]reflect.Type{}
	if t.Kind() == reflect.Map {
		found[2] = message(t.Elem())
	} else {
		for i := range t.NumField() {
			_, rest, ok := strings.Cut(t.Field(i).Tag.Get("protobuf"), ",") // "bytes,2,opt,name=spec"
			text, _, _ := strings.Cut(rest, ",")
			number, err := strconv.ParseUint(text, 10, 32)
			if inner := message(t.Field(i).Type); ok && err == nil && inner != nil {
				found[number] = inner
			}
		}
	}
	messageTypes.Store(t, found)
	return found
}

// message is the type that values of t are messages of, nil where they are scalars.
func message(t reflect.Type) reflect.Type {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		return message(t.Elem())
	case reflect.Struct:
		return t
	case reflect.Map:
		if message(t.Elem()) != nil {
			return t
		}
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
