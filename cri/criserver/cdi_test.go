package criserver

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const cdiFile = `cdiVersion: "0.6.0"
kind: example.com/dev
containerEdits:
  env: ["ALL=1"]
devices:
- name: one
  containerEdits:
    env: ["ONE=1"]
    deviceNodes: [{path: /dev/kmsg, hostPath: /dev/null}]
    mounts: [{hostPath: /usr, containerPath: /opt/usr, options: [ro, rbind]}]
    hooks: [{hookName: createContainer, path: /bin/true}]
`

func TestCDI(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dev.yaml"), []byte(cdiFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec, err := containerSpec(plainInput())
	if err != nil {
		t.Fatal(err)
	}
	rules := len(spec.Linux.Resources.Devices)
	if err := injectCDI(spec, nil, []string{"/no-such"}); err != nil {
		t.Error("without devices:", err)
	}
	if err := injectCDI(spec, []*runtimeapi.CDIDevice{{Name: "example.com/dev=one"}}, []string{dir}); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"ALL=1", "ONE=1"} {
		if !slices.Contains(spec.Process.Env, v) {
			t.Error("no variable", v)
		}
	}
	if n := spec.Linux.Devices; len(n) == 0 || n[len(n)-1].Path != "/dev/kmsg" || n[len(n)-1].Major != 1 || n[len(n)-1].Minor != 3 {
		t.Error("device nodes:", n)
	}
	if r := spec.Linux.Resources.Devices; len(r) != rules+1 || !r[rules].Allow || r[rules].Access != "rwm" {
		t.Error("who may use them:", r)
	}
	if !slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/opt/usr" }) || len(spec.Hooks.CreateContainer) != 1 {
		t.Error("mounts or hooks:", spec.Mounts, spec.Hooks)
	}
	err = injectCDI(spec, []*runtimeapi.CDIDevice{{Name: "example.com/dev=two"}}, []string{dir})
	for _, want := range []string{"example.com/dev=two", dir, "bad.json"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
