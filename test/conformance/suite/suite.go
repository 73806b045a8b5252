// Package suite builds upstream's test program and runs it.
//
// The program is `go test -c k8s.io/kubernetes/test/e2e` of the version in go.mod, unchanged; ginkgo's command runs it in
// several processes. Both are kept in the cache under the digest of go.sum.
package suite

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	upstreamTests = "k8s.io/kubernetes/test/e2e"
	ginkgoCommand = "github.com/onsi/ginkgo/v2/ginkgo"
)

// Program is the built suite.
type Program struct {
	Tests  string   // path of the test program
	Ginkgo string   // path of ginkgo's command
	Names  []string // full names of the tests tagged [Conformance], sorted
}

// Build returns the program of the module in the folder module from the cache, after building it if it is not there.
// What is done is said on out.
func Build(ctx context.Context, module, cache string, out io.Writer) (*Program, error) {
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(sums)
	dir := filepath.Join(cache, "suite-"+hex.EncodeToString(digest[:])[:12])
	p := &Program{Tests: filepath.Join(dir, "e2e.test"), Ginkgo: filepath.Join(dir, "ginkgo")}
	if p.Names, err = readNames(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return p, err
	}
	fmt.Fprintln(out, "building upstream's test program (once for each version; minutes)")
	version, err := Go(ctx, module, out, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return nil, err
	}
	// Released programs are told their version by the linker; some tests go by it.
	numbers := strings.Split(strings.TrimPrefix(strings.TrimSpace(version), "v"), ".")
	flags := fmt.Sprintf("-ldflags=-s -w -X %[1]s.gitVersion=v%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s",
		"k8s.io/component-base/version", strings.Join(numbers, "."), numbers[0], numbers[1])
	// Unchecked: to vet upstream's thousands of packages takes as long as to compile a third of them.
	for _, args := range [][]string{
		{"test", "-c", "-vet=off", flags, "-o", p.Tests, upstreamTests},
		{"build", "-ldflags=-s -w", "-o", p.Ginkgo, ginkgoCommand},
	} {
		if _, err := Go(ctx, module, out, args...); err != nil {
			return nil, err
		}
	}
	// The list comes last: its file says that the folder is complete.
	if err := p.list(ctx, dir); err != nil {
		return nil, err
	}
	p.Names, err = readNames(dir)
	return p, err
}

// Go runs the go command in dir and returns what it prints; its complaints go to out.
func Go(ctx context.Context, dir string, out io.Writer, args ...string) (string, error) {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir, c.Stderr = dir, out
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	printed, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return string(printed), nil
}

// tag is what the tests of the conformance suite have in their names.
const tag = "[Conformance]"

var listed = regexp.MustCompile(`^\s+\S+\.go:\d+: (.*)$`)

// tests asks the program for the names of its tests: those of the conformance suite, or those beside it.
func (p *Program) tests(ctx context.Context, tagged bool) (names []string, err error) {
	c := exec.CommandContext(ctx, p.Tests, "-list-tests")
	c.Dir = filepath.Dir(p.Tests)
	text, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("list tests: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if m := listed.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil && strings.Contains(m[1], tag) == tagged {
			names = append(names, m[1])
		}
	}
	return names, nil
}

// Beside returns the names of the program's other tests.
func (p *Program) Beside(ctx context.Context) ([]string, error) { return p.tests(ctx, false) }

// list writes down the names of the tests of the conformance suite.
func (p *Program) list(ctx context.Context, dir string) error {
	names, err := p.tests(ctx, true)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return errors.New("the program names no test tagged " + tag)
	}
	part := filepath.Join(dir, "names.part")
	if err := os.WriteFile(part, []byte(strings.Join(names, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(part, filepath.Join(dir, "names"))
}

func readNames(dir string) ([]string, error) { return ReadLines(filepath.Join(dir, "names")) }

// ReadLines returns the lines of a file that are neither empty nor comments (#).
func ReadLines(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lines []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		if text := strings.TrimSpace(s.Text()); text != "" && !strings.HasPrefix(text, "#") {
			lines = append(lines, text)
		}
	}
	return lines, s.Err()
}
