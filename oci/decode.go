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
// what is in them. An error names the field.
func decodeSpec(text []byte) (*specs.Spec, error) {
	s := new(specs.Spec)
	if err := decode(text, reflect.ValueOf(s).Elem()); err != nil {
		return nil, err
	}
	return s, nil
}

func decode(text []byte, v reflect.Value) error {
	switch t := v.Type(); {
	case bytes.Equal(text, []byte("null")):
		return nil
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct:
		v.Set(reflect.New(t.Elem()))
		return decode(text, v.Elem())
	case t.Kind() == reflect.Struct:
		var members map[string]json.RawMessage
		if err := json.Unmarshal(text, &members); err != nil {
			return err
		}
		return decodeFields(members, v)
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		var elements []json.RawMessage
		if err := json.Unmarshal(text, &elements); err != nil {
			return err
		}
		v.Set(reflect.MakeSlice(t, len(elements), len(elements)))
		for i, e := range elements {
			if err := decode(e, v.Index(i)); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return nil
	}
	return json.Unmarshal(text, v.Addr().Interface())
}

// decodeFields decodes an object's members into a struct's fields, and those of the structs that it embeds.
func decodeFields(members map[string]json.RawMessage, v reflect.Value) error {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if field.Anonymous {
			if err := decodeFields(members, v.Field(i)); err != nil {
				return err
			}
			continue
		}
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		text, ok := members[name]
		if !ok {
			text = otherCase(members, name)
		}
		if text == nil {
			continue
		}
		if err := decode(text, v.Field(i)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// otherCase finds a member as encoding/json does when there is none of the very name.
func otherCase(members map[string]json.RawMessage, name string) json.RawMessage {
	for other, text := range members {
		if len(other) == len(name) && strings.EqualFold(other, name) {
			return text
		}
	}
	return nil
}
