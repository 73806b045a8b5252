package differential

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Kind is where a kind is served.
type Kind struct {
	Group, Version, Kind, Plural string
	Namespaced                   bool
	Verbs                        []string
	Subresources                 []string
}

func (k Kind) apiVersion() string {
	if k.Group == "" {
		return k.Version
	}
	return k.Group + "/" + k.Version
}

// collection is the path of a kind's objects.
func (k Kind) collection(namespace string) string {
	path := "/apis/" + k.Group + "/" + k.Version
	if k.Group == "" {
		path = "/api/" + k.Version
	}
	if k.Namespaced {
		path += "/namespaces/" + namespace
	}
	return path + "/" + k.Plural
}

var (
	header  = regexp.MustCompile(`(?m)^==== `)
	changes = regexp.MustCompile(`(?m)^--- ?(\w*)\n`)
)

// golden is a golden file of apiserver/builtin: a document, and cases that are merge patches of it; the words on that format are at
// builtin's TestGolden.
type golden struct {
	document map[string]any
	cases    []goldenCase
}

type goldenCase struct {
	title   string
	create  map[string]any
	updates []goldenUpdate
}

type goldenUpdate struct {
	sub   string
	patch map[string]any
}

// readGolden reads the files of a folder, by name without extension.
func readGolden(dir string) (map[string]*golden, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no golden files in %s: %w", dir, err)
	}
	all := map[string]*golden{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		if all[name], err = parseGolden(string(text)); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return all, nil
}

func parseGolden(text string) (*golden, error) {
	sections := header.Split(text, -1)
	g := &golden{}
	var err error
	if g.document, err = document(sections[0]); err != nil {
		return nil, err
	}
	for _, s := range sections[1:] {
		title, body, _ := strings.Cut(s, "\n")
		in, _, _ := strings.Cut(body, "----\n")
		c := goldenCase{title: title}
		first, at := in, changes.FindAllStringSubmatchIndex(in, -1)
		if len(at) > 0 {
			first = in[:at[0][0]]
		}
		if c.create, err = document(first); err != nil {
			return nil, fmt.Errorf("%s: %w", title, err)
		}
		for i, m := range at {
			end := len(in)
			if i+1 < len(at) {
				end = at[i+1][0]
			}
			u := goldenUpdate{sub: in[m[2]:m[3]]}
			if u.patch, err = document(in[m[1]:end]); err != nil {
				return nil, fmt.Errorf("%s: %w", title, err)
			}
			c.updates = append(c.updates, u)
		}
		g.cases = append(g.cases, c)
	}
	return g, nil
}

func document(text string) (map[string]any, error) {
	m := map[string]any{}
	return m, yaml.Unmarshal([]byte(text), &m)
}

// goldenScripts make the cases of a golden file into requests.
func goldenScripts(name string, g *golden, kinds []Kind) ([]Script, error) {
	var scripts []Script
	for _, c := range g.cases {
		doc := merge(g.document, c.create)
		k, ok := find(kinds, doc)
		if !ok {
			return nil, fmt.Errorf("%s: %v %v is not served", name, doc["apiVersion"], doc["kind"])
		}
		namespace, _ := at(doc, "metadata.namespace").(string)
		object := k.collection(namespace) + "/" + fmt.Sprint(at(doc, "metadata.name"))
		s := Script{Name: "golden/" + name + "/" + c.title}
		s.Steps = append(s.Steps, Step{Name: "create", Method: "POST", Path: k.collection(namespace), Object: doc})
		for _, u := range c.updates {
			path := object
			if u.sub != "" {
				path += "/" + u.sub
			}
			s.Steps = append(s.Steps, Step{Name: strings.TrimSpace("update " + u.sub), Method: "PUT", Path: path, Object: u.patch})
		}
		s.Steps = append(s.Steps, Step{Name: "row", Method: "GET", Path: object, Header: map[string]string{"Accept": tables}})
		scripts = append(scripts, s)
	}
	return scripts, nil
}

const tables = "application/json;as=Table;v=v1;g=meta.k8s.io"

func find(kinds []Kind, doc map[string]any) (Kind, bool) {
	for _, k := range kinds {
		if k.apiVersion() == doc["apiVersion"] && k.Kind == doc["kind"] {
			return k, true
		}
	}
	return Kind{}, false
}
