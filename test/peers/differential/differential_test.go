package differential

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/yare-dev/yare/test/peers/cluster"
	"github.com/yare-dev/yare/test/peers/host"
	"github.com/yare-dev/yare/test/peers/programs"
)

var (
	only   = flag.String("only", "", "scripts whose names begin so")
	list   = flag.String("list", "", "write all unexplained differences into this file")
	accept = flag.Bool("accept", false, "rewrite testdata/open.txt")
	answer = flag.Bool("answers", false, "show both answers of each request that differs")
)

// least is how many requests are asked at least; more kinds are more requests.
const least = 400

func TestDifferential(t *testing.T) {
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("starts API servers, as root")
	}
	ours, theirs := start(t)
	scripts := collect(t, ours, theirs)
	explained, err := readExplained("testdata/differences.txt")
	if err != nil {
		t.Fatal(err)
	}
	open, err := readOpen("testdata/open.txt")
	if err != nil {
		t.Fatal(err)
	}
	requests, different := 0, 0
	var unexplained []string
	for _, script := range scripts {
		if !strings.HasPrefix(script.Name, *only) {
			continue
		}
		a, b := both(t, ours, theirs, script)
		requests += len(script.Steps)
		for i, step := range script.Steps {
			name := script.Name + ": " + step.Name
			differences := Differences(a[i], b[i])
			if len(differences) > 0 {
				different++
			}
			for _, d := range differences {
				if !explain(explained, name, d) {
					unexplained = append(unexplained, name+" => "+d)
				}
			}
			if *answer && len(differences) > 0 {
				t.Logf("%s\nours:   %d %s\ntheirs: %d %s", name, a[i].Code, brief(a[i].Tree), b[i].Code, brief(b[i].Tree))
			}
		}
	}
	if *list != "" {
		if err := os.WriteFile(*list, []byte(strings.Join(unexplained, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all := len(unexplained)
	if *accept && *only == "" {
		if err := writeOpen("testdata/open.txt", unexplained); err != nil {
			t.Fatal(err)
		}
		return
	}
	fresh := open.fresh(unexplained)
	t.Logf("%d requests, %d answered differently: %d differences not explained, of which %d are new", requests, different, all, len(fresh))
	for i, u := range fresh {
		if i == 40 {
			t.Errorf("... and %d more: -list writes them into a file", len(fresh)-i)
			break
		}
		t.Error(u)
	}
	if *only != "" {
		return
	}
	if requests < least {
		t.Errorf("only %d requests", requests)
	}
	for _, line := range open.mended() {
		t.Errorf("mended, which -accept takes note of: %s", line)
	}
	for _, e := range explained {
		if !e.used {
			t.Errorf("explained, but not there any more: %v => %v", e.Request, e.Line)
		}
	}
}

// start starts both servers side by side, each on a host of its own.
func start(t *testing.T) (ours, theirs *Server) {
	module, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	built, err := programs.APIServer(t.Context(), module, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	p := cluster.Programs{Programs: built, Yare: filepath.Join(module, "../../bin/yare")}
	if _, err := exec.LookPath(p.Yare); err != nil {
		t.Fatalf("make build first: %v", err)
	}
	// As the golden files have them.
	ranges := cluster.Ranges{Addresses: "10.43.0.0/24", NodePorts: "30000-30003"}
	open := func(name string, whose cluster.Whose) *Server {
		h, err := host.New(t.Context(), name, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, p := range h.Started() {
				if t.Failed() {
					t.Logf("%s:\n%s", p.Name, p.Tail(20))
				}
			}
			if err := h.Close(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
		c, err := cluster.StartAPIServer(t.Context(), h, p, whose, ranges)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(c.Kubeconfig())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ours, theirs = open("dif-ours", cluster.Ours), open("dif-their", cluster.Theirs)
	// What a controller would make.
	for _, ns := range []string{"default", "kube-system"} {
		for _, s := range []*Server{ours, theirs} {
			step := Step{Method: "POST", Body: `{"metadata":{"name":"default"}}`}
			if a, err := s.ask(t.Context(), step, "/api/v1/namespaces/"+ns+"/serviceaccounts", []byte(step.Body)); err != nil || a.Code != 201 && a.Code != 409 {
				t.Fatal(a.Code, a.Object, err)
			}
		}
	}
	return ours, theirs
}

// both asks both servers the same.
func both(t *testing.T, ours, theirs *Server, script Script) (a, b []Answer) {
	t.Helper()
	var wg sync.WaitGroup
	var failed [2]error
	wg.Go(func() { a, failed[0] = ours.run(t.Context(), script) })
	wg.Go(func() { b, failed[1] = theirs.run(t.Context(), script) })
	wg.Wait()
	for i, err := range failed {
		if err != nil {
			t.Errorf("%s, %s: %v", script.Name, []string{"ours", "theirs"}[i], err)
		}
	}
	if len(a) != len(script.Steps) || len(b) != len(script.Steps) {
		t.FailNow()
	}
	return a, b
}

// collect returns all scripts for the kinds that both serve.
func collect(t *testing.T, ours, theirs *Server) (scripts []Script) {
	t.Helper()
	kinds := discover(t, ours)
	known := discover(t, theirs)
	goldens, err := readGolden("../../../apiserver/builtin/testdata")
	if err != nil {
		t.Fatal(err)
	}
	minimal := map[string]map[string]any{}
	for _, name := range sorted(goldens) {
		g := goldens[name]
		minimal[fmt.Sprint(g.document["apiVersion"], " ", g.document["kind"])] = g.document
		made, err := goldenScripts(name, g, kinds)
		if err != nil {
			t.Fatal(err)
		}
		scripts = append(scripts, made...)
	}
	texts, err := readScripts("testdata")
	if err != nil {
		t.Fatal(err)
	}
	scripts = append(scripts, texts...)
	examples, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		if !slices.ContainsFunc(known, func(x Kind) bool { return x.apiVersion() == k.apiVersion() && x.Plural == k.Plural }) {
			t.Errorf("upstream does not serve %s %s", k.apiVersion(), k.Plural)
			continue
		}
		full, err := full(filepath.Join(strings.TrimSpace(string(examples)), "testdata/HEAD"), k)
		if err != nil {
			t.Fatal(err)
		}
		scripts = append(scripts, kindScripts(k, minimal[k.apiVersion()+" "+k.Kind], full)...)
	}
	return scripts
}

func sorted[T any](m map[string]T) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// discover asks a server what it serves.
func discover(t *testing.T, s *Server) (kinds []Kind) {
	t.Helper()
	get := func(path string) map[string]any {
		a, err := s.ask(t.Context(), Step{Method: "GET"}, path, nil)
		if err != nil || a.Code != 200 {
			t.Fatal(path, a.Code, err)
		}
		return a.Object
	}
	kinds = kindsOf(get("/api/v1"))
	groups, _ := get("/apis")["groups"].([]any)
	for _, g := range groups {
		m, _ := g.(map[string]any)
		versions, _ := m["versions"].([]any)
		for _, v := range versions {
			kinds = append(kinds, kindsOf(get("/apis/"+fmt.Sprint(at(v, "groupVersion"))))...)
		}
	}
	return kinds
}
