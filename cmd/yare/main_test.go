package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/cri/criserver"
	"github.com/yare-dev/yare/image"
)

func output(t *testing.T, args ...string) string {
	t.Helper()
	var out strings.Builder
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestVersion finds one version everywhere, in the form that upstream's kubelet can read.
func TestVersion(t *testing.T) {
	t.Parallel()
	if !regexp.MustCompile(`^\d+\.\d+\.\d+\+[0-9A-Za-z.-]+$`).MatchString(version) {
		t.Errorf("%q is not of semver.org's form", version)
	}
	if flag, verb := output(t, "--version"), output(t, "version"); flag != verb || !strings.Contains(verb, version) {
		t.Errorf("--version: %q, version: %q", flag, verb)
	}
	dir := t.TempDir()
	side := &containerSide{runtime: criserver.Config{Dir: dir + "/c", RunDir: dir + "/r"}, images: image.Config{Dir: dir + "/i"}, runDir: dir}
	side.log = slog.New(slog.DiscardHandler)
	_, server, init, err := side.open()
	if err != nil {
		t.Fatal(err)
	}
	defer init.Close()
	if v, err := server.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil || v.RuntimeVersion != version {
		t.Errorf("the runtime tells %v, %v", v, err)
	}
}

// TestHints finds the cluster's name in what people are told to do, unless it is the default one.
func TestHints(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{cluster.DefaultName: "'yare up'", "x": "'yare up --name x'"} {
		var out strings.Builder
		if err := (&status{Name: name}).print(&out); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("status: %s, %v", out.String(), err)
		}
		_, err := (cluster.Host{VarDir: t.TempDir()}).Find(name)
		if got := mend(err); !strings.Contains(got, want) || !errors.Is(err, cluster.ErrUnknown) {
			t.Errorf("unknown: %s", got)
		}
	}
}

// TestStatusAll prints all clusters as a table and as JSON.
func TestStatusAll(t *testing.T) {
	t.Parallel()
	rs := []*cluster.Record{{Name: "a", RunDir: t.TempDir(), APIPort: 1}, {Name: "b", RunDir: t.TempDir(), APIPort: 2}}
	for _, output := range []string{"", "json"} {
		var out strings.Builder
		if err := printClusters(t.Context(), &out, rs, output); err != nil {
			t.Fatal(err)
		}
		var names []string
		if output == "json" {
			var all []status
			if err := json.Unmarshal([]byte(out.String()), &all); err != nil {
				t.Fatalf("%v: %s", err, out.String())
			}
			for _, s := range all {
				names = append(names, s.Name)
			}
		} else {
			for line := range strings.Lines(out.String()) {
				if f := strings.Fields(line); f[0] != "NAME" {
					names = append(names, f[0])
				}
			}
		}
		if got := strings.Join(names, " "); got != "a b" {
			t.Errorf("%q: %q", output, got)
		}
	}
	var out strings.Builder
	if err := printClusters(t.Context(), &out, nil, "json"); err != nil || strings.TrimSpace(out.String()) != "[]" {
		t.Errorf("none: %q %v", out.String(), err)
	}
}
