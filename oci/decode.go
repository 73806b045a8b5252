package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// decodeSpec is json.Unmarshal for a spec, in half the time for the first one: a process per verb feels what encoding/json does
// before it decodes. It looks at a type with all types in it, whether they come up or not, and a spec's, with other platforms and
// limits of every kind, take it longer than a container's cgroups take the kernel. So structs are taken apart here, and it decodes
// what is in them. Nothing is taken otherwise than it would be there, names that come twice or in another case neither: what
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
	structs := (t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer) && t.Elem().Kind() == reflect.Struct
	switch {
	case t.Kind() == reflect.Struct && text[0] == '{':
		return d.decodeStruct(text, v)
	case structs && t.Kind() == reflect.Slice && text[0] == '[':
		return d.decodeSlice(text, v)
	case structs && t.Kind() == reflect.Pointer && text[0] == '{':
		if v.IsNil() {
			v.Set(reflect.New(t.Elem()))
		}
		return d.decodeStruct(text, v.Elem())
	case structs && text[0] == 'n': // null
		v.SetZero()
		return nil
	}
	return json.Unmarshal(text, v.Addr().Interface())
}

func (d decoder) decodeStruct(text []byte, v reflect.Value) error {
	members, known := d[v.Type()]
	if !known {
		members = membersOf(v.Type())
		d[v.Type()] = members
	}
	return split(text, func(_ int, name string, value json.RawMessage) error {
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
	err := split(text, func(i int, _ string, value json.RawMessage) error {
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

// split calls f with each element of an array, or each member of an object, in order.
func split(text []byte, f func(i int, name string, value json.RawMessage) error) error {
	d := json.NewDecoder(bytes.NewReader(text))
	bracket, err := d.Token()
	for i := 0; err == nil && d.More(); i++ {
		var name json.Token
		if bracket == json.Delim('{') {
			if name, err = d.Token(); err != nil {
				break
			}
		}
		var value json.RawMessage
		if err = d.Decode(&value); err == nil {
			key, _ := name.(string)
			err = f(i, key, value)
		}
	}
	return err
}
