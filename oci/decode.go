package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// decodeSpec is json.Unmarshal for a spec, in a fraction of the time for the first one: a process per verb feels what encoding/json
// does before it decodes. It looks at a type with all types in it, whether they come up or not, and a spec's, with other platforms
// and limits of every kind, take it longer than a container's cgroups take the kernel. And its decoder, asked for one value after
// the other, copies each: a usual seccomp profile took it 3 ms. So structs are taken apart here, with the simple values in them,
// and it decodes the rest. Nothing is taken otherwise than it would be there, names that come twice or in another case neither: what
// others have judged by reading it is what runs. An error names the field.
func decodeSpec(text []byte) (*specs.Spec, error) {
	if !json.Valid(text) { // on which all that follows relies
		return nil, json.Unmarshal(text, new(json.RawMessage))
	}
	s := new(specs.Spec)
	if err := make(decoder).decode(bytes.TrimSpace(text), reflect.ValueOf(s).Elem()); err != nil {
		return nil, err
	}
	return s, nil
}

// decoder is what is known of the struct types that came up.
type decoder map[reflect.Type][]member

// member is a field, or that of a struct which is embedded.
type member struct {
	name  string
	index []int
}

// decode decodes valid text, without space around it, into what v holds already.
func (d decoder) decode(text []byte, v reflect.Value) error {
	t := v.Type()
	switch {
	case text[0] == 'n' && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice): // null
		v.SetZero()
		return nil
	case t.Kind() == reflect.Struct && text[0] == '{':
		return d.decodeStruct(text, v)
	case t.Kind() == reflect.Slice && text[0] == '[' && (t.Elem().Kind() == reflect.Struct || t.Elem().Kind() == reflect.String):
		return d.decodeSlice(text, v)
	case t.Kind() == reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(t.Elem()))
		}
		return d.decode(text, v.Elem())
	case decodeSimple(text, v):
		return nil
	}
	return json.Unmarshal(text, v.Addr().Interface())
}

// decodeSimple decodes what most of a spec is, and tells whether it did. No type of a spec's decodes itself.
func decodeSimple(text []byte, v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String:
		if !plain(text) {
			return false
		}
		v.SetString(string(text[1 : len(text)-1]))
	case reflect.Bool:
		if text[0] != 't' && text[0] != 'f' {
			return false
		}
		v.SetBool(text[0] == 't')
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil {
			return false
		}
		v.SetInt(n)
	case reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(string(text), 10, v.Type().Bits())
		if err != nil {
			return false
		}
		v.SetUint(n)
	default:
		return false
	}
	return true
}

// plain tells whether a valid text is a string that stands for itself.
func plain(text []byte) bool {
	return text[0] == '"' && bytes.IndexByte(text, '\\') < 0 && utf8.Valid(text)
}

func (d decoder) decodeStruct(text []byte, v reflect.Value) error {
	members, known := d[v.Type()]
	if !known {
		members = membersOf(v.Type())
		d[v.Type()] = members
	}
	return split(text, func(_ int, name string, value []byte) error {
		m := find(members, name)
		if m == nil {
			return nil
		}
		if err := d.decode(value, v.FieldByIndex(m.index)); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		return nil
	})
}

// decodeSlice decodes into the elements that there are from a slice of the same name before, as encoding/json does.
func (d decoder) decodeSlice(text []byte, v reflect.Value) error {
	n := 0
	err := split(text, func(i int, _ string, value []byte) error {
		n = i + 1
		if n > v.Cap() {
			v.Grow(1)
		}
		if n > v.Len() {
			v.SetLen(n)
		}
		if err := d.decode(value, v.Index(i)); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
		return nil
	})
	if n == 0 {
		v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	}
	v.SetLen(n)
	return err
}

func membersOf(t reflect.Type) (own []member) {
	var embedded []member
	for i := range t.NumField() {
		field := t.Field(i)
		if field.Anonymous {
			for _, m := range membersOf(field.Type) {
				embedded = append(embedded, member{m.name, append([]int{i}, m.index...)})
			}
			continue
		}
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		own = append(own, member{name, field.Index})
	}
	return append(own, embedded...)
}

// find prefers the very name to one in another case.
func find(members []member, name string) *member {
	for i := range members {
		if members[i].name == name {
			return &members[i]
		}
	}
	for i := range members {
		if strings.EqualFold(members[i].name, name) {
			return &members[i]
		}
	}
	return nil
}

// split calls f with each element of an array, or each member of an object, in order. Text is valid.
func split(text []byte, f func(i int, name string, value []byte) error) error {
	object := text[0] == '{'
	rest := bytes.TrimLeft(text[1:], space)
	for i := 0; rest[0] != ']' && rest[0] != '}'; i++ {
		name := ""
		if object {
			var err error
			if name, rest, err = splitName(rest); err != nil {
				return err
			}
		}
		n := valueLen(rest)
		if err := f(i, name, rest[:n]); err != nil {
			return err
		}
		rest = bytes.TrimLeft(rest[n:], space)
		if rest[0] == ',' {
			rest = bytes.TrimLeft(rest[1:], space)
		}
	}
	return nil
}

const space = " \t\r\n"

// splitName takes a name off a text, and the colon.
func splitName(text []byte) (name string, rest []byte, err error) {
	n := valueLen(text)
	if key := text[:n]; plain(key) {
		name = string(key[1 : n-1])
	} else {
		err = json.Unmarshal(key, &name)
	}
	rest = bytes.TrimLeft(text[n:], space)
	return name, bytes.TrimLeft(rest[1:], space), err
}

// valueLen is the length of the value that a valid text begins with.
func valueLen(text []byte) int {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			for i++; text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth < 0 {
				return i
			}
			if depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return len(text)
}
