package openapi

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
)

// Empty is a document to add to.
func Empty(f Form) Doc { return f.document(Doc{}, Doc{}, Doc{}) }

// Add puts paths and definitions of from into the document d, which must be the caller's own; from is only read, and what was added is
// shared with it. What d has stays. A definition of a name that d has with another content gets a name of its own, as upstream does it.
func Add(f Form, d, from Doc) {
	add(f, d, from, func(string) bool { return true })
}

// AddBelow is Add for a document of another server, of which only the paths that begin with prefix count, and the definitions that
// these refer to.
func AddBelow(f Form, d, from Doc, prefix string) {
	add(f, d, from, func(path string) bool { return strings.HasPrefix(path, prefix) })
}

func add(f Form, d, from Doc, wanted func(path string) bool) {
	m := merger{form: f, have: f.schemas(d), more: f.schemas(from), names: map[string]string{}}
	paths := child(d, "paths")
	for path, item := range child(from, "paths") {
		if _, taken := paths[path]; !taken && wanted(path) {
			m.reach(item)
			paths[path] = item
		}
	}
	renamed := m.settle()
	for name := range m.names {
		m.have[m.names[name]] = m.renamed(m.more[name], renamed)
	}
	if renamed {
		for path, item := range child(from, "paths") {
			if wanted(path) && sameDoc(paths[path], item) {
				paths[path] = m.renamed(item, true)
			}
		}
	}
}

// merger brings definitions of one document into another.
type merger struct {
	form       Form
	have, more Doc
	names      map[string]string // of definitions that are referred to: their names in the other document
}

// reach notes the definitions that v refers to.
func (m *merger) reach(v any) {
	switch v := v.(type) {
	case Doc:
		if name, ok := m.refers(v); ok {
			if _, seen := m.names[name]; !seen && m.more[name] != nil {
				m.names[name] = name
				m.reach(m.more[name])
			}
		}
		for _, inner := range v {
			m.reach(inner)
		}
	case []any:
		for _, inner := range v {
			m.reach(inner)
		}
	}
}

func (m *merger) refers(d Doc) (string, bool) {
	ref, _ := d["$ref"].(string)
	return strings.CutPrefix(ref, m.form.root())
}

// settle gives definitions whose names mean something else already new ones, and says whether there are any.
func (m *merger) settle() (any bool) {
	for name := range m.names {
		old, taken := m.have[name]
		for n := 2; taken && !sameDoc(old, m.more[name]); n++ {
			m.names[name], any = name+"_v"+strconv.Itoa(n), true
			old, taken = m.have[m.names[name]]
		}
	}
	return any
}

// sameDoc compares as JSON: parts of one document were made here, those of the other were read.
func sameDoc(a, b any) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// renamed is v with the new names in its references; v itself where nothing was renamed.
func (m *merger) renamed(v any, is bool) any {
	if !is {
		return v
	}
	switch v := v.(type) {
	case Doc:
		out := make(Doc, len(v))
		for k, inner := range v {
			out[k] = m.renamed(inner, is)
		}
		if name, ok := m.refers(v); ok && m.names[name] != "" {
			out["$ref"] = m.form.root() + m.names[name]
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, inner := range v {
			out[i] = m.renamed(inner, is)
		}
		return out
	}
	return v
}
