// Package v2host_test runs Yare on a host that has cgroup v2 alone, in a machine that it boots for it: the tests of the
// packages that touch the kernel, and those of folder guest, which use the program as a user does. What they say in
// the machine becomes results of the tests here.
package v2host_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/yare-dev/yare/test/v2host/machine"
)

var (
	only     = flag.String("only", "", "run only the packages that match this expression")
	guestRun = flag.String("guest-run", "", "-test.run of the tests in the machine")
	bench    = flag.String("guest-bench", "", "-test.bench of the tests in the machine")
	live     = flag.Bool("live", false, "show what the machine says while it says it")
)

// patterns are the packages whose tests ask the kernel for something that differs with cgroup v2, or that a whole
// container needs.
var patterns = []string{"./oci/...", "./cri/criserver", "./linux/...", "./image", "./cni/...", "./proxy", "./kubelet", "./kubelet/resources", "./cmd/cluster"}

const (
	modulePrefix = "github.com/yare-dev/yare/"
	guestPackage = modulePrefix + "test/v2host/guest"
	// perPackage bounds each package's tests, and whole the machine's life.
	perPackage = 15 * time.Minute
	whole      = 50 * time.Minute
	// notHere measures how fast a machine is, of which one that is computed says nothing, or needs another machine, or
	// does once more over a socket what was done without.
	notHere = "^(TestRealLatency|TestSystemd|TestSuiteOverTheSocket|TestNoIPv6|TestAppArmor|TestSELinux)$"
	// mark begins the lines that say where a package's output begins and ends.
	mark = "\x02"
)

// testPackage is one whose tests are run in the machine.
type testPackage struct{ path, dir string }

func (p testPackage) name() string { return strings.TrimPrefix(p.path, modulePrefix) }

// file is its test program's.
func (p testPackage) file() string {
	return testsDir + "/" + strings.ReplaceAll(p.name(), "/", "_") + ".test"
}

// TestV2 has a machine with as little as possible beside the kernel.
func TestV2(t *testing.T) {
	top, kernel := places(t)
	packages := findPackages(t, top)
	root := newRoot(t, kernel)
	script := rc
	for _, p := range packages {
		script += install(t, top, root, p, "-test.skip='"+notHere+"'")
	}
	boot(t, kernel, root, script, packages)
}

// TestNoIPv6 has a machine whose kernel has IPv6 off: clusters of IPv4 work, others are refused.
func TestNoIPv6(t *testing.T) {
	p := testPackage{path: guestPackage, dir: "guest"}
	if !regexp.MustCompile(*only).MatchString(p.name()) {
		return
	}
	top, kernel := places(t)
	root := newRoot(t, kernel)
	boot(t, kernel, root, rc+install(t, top, root, p, "-test.run='^(TestNoIPv6|TestCluster)$'"), []testPackage{p}, "ipv6.disable=1")
}

// underProfile are the parts of CRI's suite that a profile could be in the way of.
const underProfile = "^TestSuiteInProcess$/^(StopContainer|Process|User|Security|AppArmor|Namespaces|Mounts|Devices|ExecSync|Exec)$"

// TestAppArmor has a machine with the program that compiles AppArmor's profiles, as hosts with AppArmor have. So each container that does not say
// otherwise is under the default profile.
func TestAppArmor(t *testing.T) {
	top, kernel := places(t)
	root := newRoot(t, kernel)
	output(t, "cp", "-rT", filepath.Join(top, "bin/v2host/apparmor"), root)
	script := rc + "mount -t securityfs securityfs /sys/kernel/security\n"
	var packages []testPackage
	for _, p := range findPackages(t, top) {
		switch p.name() {
		case "test/v2host/guest":
			script += install(t, top, root, p, "-test.run='^TestAppArmor$'")
		case "cri/criserver":
			script += install(t, top, root, p, "-test.run='"+underProfile+"'")
		default:
			continue
		}
		packages = append(packages, p)
	}
	if len(packages) > 0 {
		boot(t, kernel, root, script, packages)
	}
}

// TestSELinux has a machine with SELinux, which enforces a policy for containers.
func TestSELinux(t *testing.T) {
	p := testPackage{path: guestPackage, dir: "guest"}
	if !regexp.MustCompile(*only).MatchString(p.name()) {
		return
	}
	top, kernel := places(t)
	root := newRoot(t, kernel)
	compilePolicy(t, filepath.Join(top, "bin/v2host/checkpolicy"), root)
	boot(t, kernel, root, rc+enforce+install(t, top, root, p, "-test.run='^TestSELinux$'"), []testPackage{p}, "security=selinux")
}

// TestSystemd has a machine that systemd runs, for the cgroup driver that asks it.
func TestSystemd(t *testing.T) {
	p := testPackage{path: guestPackage, dir: "guest"}
	if !regexp.MustCompile(*only).MatchString(p.name()) {
		return
	}
	top, kernel := places(t)
	root := newSystemdRoot(t, filepath.Join(top, "bin/v2host/debian"), kernel)
	boot(t, kernel, root, head+speak+install(t, top, root, p, "-test.run=^TestSystemd$"), []testPackage{p})
}

func places(t *testing.T) (top, kernel string) {
	t.Helper()
	top, err := filepath.Abs("../..")
	must(t, err)
	return top, filepath.Join(top, "bin/v2host/kernel")
}

// boot runs the script in a machine, whose kernel may have more parameters, and reports what the packages' tests said.
func boot(t *testing.T, kernel, root, script string, packages []testPackage, parameters ...string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(root, "etc/rc"), []byte(script+"sync\n/bin/busybox reboot -f\n"), 0o755))
	ctx, cancel := context.WithTimeout(t.Context(), whole)
	defer cancel()
	m := &machine.Machine{Kernel: kernel, Root: root, Scratch: t.TempDir(), Memory: 3072, Disk: 6144,
		Parameters: append([]string{"cgroup_no_v1=all", "psi=1", "hugepages=16", "quiet"}, parameters...)}
	var out bytes.Buffer
	var to io.Writer = &out
	if *live {
		to = io.MultiWriter(&out, os.Stderr)
	}
	begin := time.Now()
	err := m.Run(ctx, to)
	t.Logf("the machine lived for %.1f s", time.Since(begin).Seconds())
	before, results := split(out.String())
	if err != nil {
		t.Errorf("%v\nconsole:\n%s", err, m.Console())
	}
	t.Log(before)
	for _, p := range packages {
		t.Run(p.name(), func(t *testing.T) {
			r, ok := results[p.name()]
			if !ok {
				t.Fatalf("it was not run\nconsole:\n%s", m.Console())
			}
			report(t, r)
		})
	}
}

// findPackages lists those with tests.
func findPackages(t *testing.T, top string) []testPackage {
	t.Helper()
	wanted := regexp.MustCompile(*only)
	list := []testPackage{{path: guestPackage, dir: filepath.Join(top, "test/v2host/guest")}}
	args := append([]string{"list", "-C", top, "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}"}, patterns...)
	for line := range strings.Lines(output(t, "go", args...)) {
		path, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		if path != "" {
			list = append(list, testPackage{path, dir})
		}
	}
	var out []testPackage
	for _, p := range list {
		if wanted.MatchString(p.name()) {
			out = append(out, p)
		}
	}
	return out
}

// install builds a package's tests and the programs into the root, and returns the script's lines that run them.
func install(t *testing.T, top, root string, p testPackage, flags string) string {
	t.Helper()
	if !exists(filepath.Join(root, binDir, "yare")) {
		for from, to := range map[string]string{"bin/yare": "yare", "oci/bin/yare-init": "yare-init"} {
			output(t, "cp", filepath.Join(top, from), filepath.Join(root, binDir, to))
		}
		must(t, os.Symlink("yare", filepath.Join(root, binDir, "kubectl")))
		goBuild(t, top, "build", "-o", filepath.Join(root, binDir, "hello"), "./examples/hello")
	}
	goBuild(t, p.dir, "test", "-tags=guest", "-c", "-o", filepath.Join(root, p.file()), ".")
	dir := filepath.Join(sourceDir, p.name())
	must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	if data := filepath.Join(p.dir, "testdata"); exists(data) {
		output(t, "cp", "-r", data, filepath.Join(root, dir))
	}
	flags += fmt.Sprintf(" -test.v=test2json -test.timeout=%s", perPackage)
	if *guestRun != "" {
		flags += fmt.Sprintf(" -test.run='%s'", *guestRun)
	}
	if *bench != "" {
		flags += fmt.Sprintf(" -test.bench='%s'", *bench)
	}
	return fmt.Sprintf("cd %s\nprintf '\\n\\002begin %s\\n'\ntimeout -s KILL %d %s %s\nprintf '\\n\\002end %s %%d\\n' $?\n",
		dir, p.name(), int((perPackage + 10*time.Second).Seconds()), p.file(), flags, p.name())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func goBuild(t *testing.T, dir, verb string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{verb, "-ldflags=-s -w"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s in %s: %v\n%s", verb, dir, err, out)
	}
}

// result is what a package's tests wrote, and their exit code; none if they did not end.
type result struct {
	output string
	code   string
}

// split takes the machine's output apart: what came before the first package, and each package's.
func split(text string) (before string, results map[string]result) {
	results = map[string]result{}
	before, text, _ = strings.Cut(text, "\n"+mark)
	for part := range strings.SplitSeq(text, "\n"+mark) {
		head, body, _ := strings.Cut(part, "\n")
		switch f := strings.Fields(head); {
		case len(f) == 2 && f[0] == "begin":
			results[f[1]] = result{output: body}
		case len(f) == 3 && f[0] == "end":
			results[f[1]] = result{output: results[f[1]].output, code: f[2]}
		}
	}
	return before, results
}

// event is one of test2json's.
type event struct {
	Action, Test, Output string
}

// outcome is one test's.
type outcome struct {
	name, action string
	output       strings.Builder
}

// report makes the results of a package's tests those of subtests.
func report(t *testing.T, r result) {
	outcomes, err := parse(t.Context(), r.output)
	must(t, err)
	said := ""
	for _, o := range outcomes {
		if o.name == "" {
			said = o.output.String()
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			switch o.action {
			case "pass":
			case "skip":
				t.Skip(o.output.String())
			default:
				t.Errorf("%s\n%s", o.action, o.output.String())
			}
		})
	}
	if r.code != "0" {
		t.Errorf("exit code %q\n%s", r.code, said)
	} else if *bench != "" {
		t.Log(said)
	}
}

// parse has Go's own tool read what a test program wrote. Outcomes are in the order in which the tests began; that
// without a name is what belongs to none.
func parse(ctx context.Context, text string) ([]*outcome, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json")
	cmd.Stdin = strings.NewReader(text)
	raw, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool test2json: %w", err)
	}
	index := map[string]*outcome{}
	var list []*outcome
	for d := json.NewDecoder(bytes.NewReader(raw)); ; {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, err
		}
		o := index[e.Test]
		if o == nil {
			o = &outcome{name: e.Test, action: "it did not end"}
			index[e.Test], list = o, append(list, o)
		}
		switch e.Action {
		case "pass", "fail", "skip":
			o.action = e.Action
		case "output":
			o.output.WriteString(e.Output)
		}
	}
}
