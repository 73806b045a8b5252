package main

import (
	"log/slog"
	"regexp"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

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
