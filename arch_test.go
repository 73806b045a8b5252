// Package yare_test holds the architecture to its rules: who may import whom, what a package must say of
// itself, how large things may grow. Every failure prints the rule. doc/ARCHITECTURE.md explains them.
package yare_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/yare-dev/yare/"

// mayImport is the import table: a folder (and what lies below it) to the folders of ours that it may import. The
// longest matching folder counts. A folder may always import what lies below itself.
var mayImport = map[string][]string{
	"api":             {},
	"linux":           {},
	"run":             {},
	"stream":          {},
	"client":          {"api", "run"},
	"pki":             {"api", "run"},
	"etcd":            {"run", "pki"},
	"store":           {"api", "etcd", "run"},
	"reconcile":       {"api", "client", "run"},
	"controllers":     {"api", "client", "reconcile", "run", "pki"},
	"scheduler":       {"api", "client", "run", "reconcile"},
	"dns":             {"api", "client", "run"},
	"apiserver":       {"api", "client", "store", "pki", "run", "stream"},
	"oci":             {"linux", "run"},
	"cni":             {"linux", "run"},
	"image":           {"linux", "run"},
	"cri":             {"run"},
	"csi":             {"run", "linux"},
	"csi/csitest":     {"csi", "linux"},
	"csi/localdriver": {"api", "client", "linux", "run"},
	"cri/critest":     {"cri", "linux"},
	"cri/criserver":   {"cri", "image", "oci", "cni", "linux", "run"},
	"kubelet":         {"api", "client", "cri", "csi", "linux", "pki", "run", "stream"},
	"proxy":           {"api", "client", "linux", "run"},
	"cmd":             {"*"},
	"examples":        {},
	"test":            {"*"},
}

// forbidden are modules that the product replaces.
var forbidden = []string{"k8s.io/kubernetes", "github.com/containerd/containerd", "github.com/opencontainers/runc", "github.com/k3s-io/"}

var bannedNames = []string{"util", "utils", "common", "helpers", "helper", "base", "types", "manager", "misc"}

const (
	maxFile      = 600
	maxFunction  = 80
	maxInterface = 8
)

// exceptions are files and functions that may be larger, each with its reason.
var exceptions = map[string]string{}

// mayPanic are the checks of program starts: mistakes of the program itself, seen in its first test.
var mayPanic = map[string]string{
	"api/kind.go":        "a Go type without a kind is a programming error",
	"apiserver/chain.go": "http.ErrAbortHandler is net/http's own way to end a connection",
}

// source is one parsed Go file.
type source struct {
	path  string // slash-separated, from the root
	dir   string
	file  *ast.File
	fset  *token.FileSet
	lines int
	test  bool
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil && p != "." {
				return filepath.SkipDir // a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, text, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, source{
			path: filepath.ToSlash(p), dir: path.Dir(filepath.ToSlash(p)), file: f, fset: fset,
			lines: strings.Count(string(text), "\n"), test: strings.HasSuffix(name, "_test.go"),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// rule returns the longest entry of the import table that holds dir.
func rule(dir string) (string, []string, bool) {
	for d := dir; d != "."; d = path.Dir(d) {
		if allowed, ok := mayImport[d]; ok {
			return d, allowed, true
		}
	}
	return "", nil, false
}

func below(dir, root string) bool { return dir == root || strings.HasPrefix(dir, root+"/") }

func TestImports(t *testing.T) {
	for _, s := range sources(t) {
		for _, imp := range s.file.Imports {
			p := strings.Trim(imp.Path.Value, `"`)
			for _, f := range forbidden {
				if strings.HasPrefix(p, f) {
					t.Errorf("%s imports %s: the product replaces it; test peers live in a module below test/", s.path, p)
				}
			}
			to, ours := strings.CutPrefix(p, module)
			if !ours || s.test || s.dir == "." {
				continue // tests may cross seams: that is what they are for
			}
			if err := checkImport(s.dir, to); err != nil {
				t.Errorf("%s: %v", s.path, err)
			}
		}
	}
}

func checkImport(from, to string) error {
	root, allowed, ok := rule(from)
	if !ok {
		return fmt.Errorf("%s is in no row of mayImport, the import table", from)
	}
	if below(to, root) && root != "cri" { // cri is the contract: its server is another box
		if strings.HasPrefix(from, "controllers/") && path.Base(from) != path.Base(to) && to != "controllers" {
			return fmt.Errorf("controller %s imports %s: controllers never import each other", from, to)
		}
		return nil
	}
	for _, a := range allowed {
		if a == "*" {
			return nil
		}
		if below(to, a) && (a != "cri" || to == "cri") {
			return nil
		}
	}
	return fmt.Errorf("%s may import only %v of ours, not %s", root, allowed, to)
}

func TestPackages(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		name := s.file.Name.Name
		if slices.Contains(bannedNames, name) {
			t.Errorf("%s: package %s: the name says nothing; name what it is", s.path, name)
		}
		if !s.test {
			documented[s.dir] = documented[s.dir] || s.file.Doc != nil
		}
	}
	layout, err := os.ReadFile("doc/ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range slices.Sorted(maps.Keys(documented)) {
		if !documented[dir] {
			t.Errorf("%s has no package comment: say what it is, what it replaces upstream and its invariants", dir)
		}
		if !strings.Contains(string(layout), "`"+dir+"`") {
			t.Errorf("%s has no row in doc/ARCHITECTURE.md", dir)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, s := range sources(t) {
		if s.lines > maxFile && exceptions[s.path] == "" {
			t.Errorf("%s has %d lines; a file has at most %d", s.path, s.lines, maxFile)
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Body == nil || s.test {
					return true
				}
				lines := s.fset.Position(n.End()).Line - s.fset.Position(n.Pos()).Line + 1
				if where := s.path + ":" + n.Name.Name; lines > maxFunction && exceptions[where] == "" {
					t.Errorf("%s has %d lines; a function has at most %d", where, lines, maxFunction)
				}
			case *ast.TypeSpec:
				if i, ok := n.Type.(*ast.InterfaceType); ok && i.Methods.NumFields() > maxInterface {
					t.Errorf("%s: interface %s has %d methods; at most %d", s.path, n.Name.Name, i.Methods.NumFields(), maxInterface)
				}
			}
			return true
		})
	}
}

// banned maps calls that have one place to the place. A package's own programs (package main) may print and exit.
var banned = map[string]string{
	"slog.Default":       "loggers are injected",
	"log.Printf":         "loggers are injected",
	"log.Println":        "loggers are injected",
	"log.Fatal":          "errors are returned",
	"log.Fatalf":         "errors are returned",
	"fmt.Print":          "only commands print",
	"fmt.Println":        "only commands print",
	"fmt.Printf":         "only commands print",
	"os.Exit":            "errors are returned",
	"context.Background": "contexts are passed; context.WithoutCancel(ctx) for work that must end",
	"context.TODO":       "contexts are passed",
}

func TestIdioms(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || below(s.dir, "cmd") || below(s.dir, "test") || s.file.Name.Name == "main" {
			continue
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init(): nothing registers itself; lists are literal", s.path)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			switch f := call.Fun.(type) {
			case *ast.SelectorExpr:
				if x, ok := f.X.(*ast.Ident); ok {
					name := x.Name + "." + f.Sel.Name
					if why := banned[name]; why != "" {
						t.Errorf("%s: %s: %s", s.fset.Position(call.Pos()), name, why)
					}
					if name == "time.Now" && path.Base(s.path) == "plan.go" {
						t.Errorf("%s: a plan is pure: the time is an argument", s.fset.Position(call.Pos()))
					}
				}
			case *ast.Ident:
				if f.Name == "panic" && mayPanic[s.path] == "" {
					t.Errorf("%s: panic: errors are returned", s.fset.Position(call.Pos()))
				}
			}
			return true
		})
	}
}

// links returns all packages of a program.
func links(t *testing.T, program string) []string {
	t.Helper()
	deps, err := exec.Command("go", "list", "-deps", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(deps))
}

// The OCI runtime's own program is started once per verb: it links neither Kubernetes nor another component.
func TestRuntimeProgram(t *testing.T) {
	for _, p := range links(t, "./cmd/yare-oci") {
		ours, own := strings.CutPrefix(p, module)
		if own && !below(ours, "oci") && !below(ours, "linux") && ours != "cmd/yare-oci" || strings.HasPrefix(p, "k8s.io/") || strings.HasPrefix(p, "sigs.k8s.io/") {
			t.Errorf("cmd/yare-oci links %s: it is to stay small", p)
		}
	}
}

// The init is started once per container: it links nothing that starts slowly. Package os also raises the limit of open files,
// which the container's program would inherit.
func TestInitProgram(t *testing.T) {
	for _, p := range links(t, "./oci/init") {
		if slices.Contains([]string{"os", "fmt", "net", "encoding/json", "path/filepath"}, p) {
			t.Errorf("oci/init links %s: it is to stay small", p)
		}
	}
}

// Every direct dependency is listed once, with its reason.
func TestDependencies(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("doc/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, line := range strings.Split(string(doc), "\n") {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for i, name := range strings.Split(cells[1], "`") {
				listed[name] += i % 2 // what is between two backquotes
			}
		}
	}
	for _, line := range strings.Split(string(mod), "\n") {
		f := strings.Fields(line)
		if len(f) == 2 && strings.HasPrefix(line, "\t") {
			if n := listed[f[0]]; n != 1 {
				t.Errorf("%s is a direct dependency: doc/dependencies.md has it %d times, and not once with its reason", f[0], n)
			}
		}
	}
}
