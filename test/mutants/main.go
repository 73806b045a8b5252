// Command mutants shows that the tests of security classes can fail: it builds the product with one protection taken out at a
// time and runs the class's test, which must be red. The source is not touched: the go command is given the changed file as an
// overlay, in the program under test and in the programs that tests build.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// mutant is a protection that is taken out: old is replaced by new, which must be there once.
type mutant struct {
	class    string // what it protects from
	file     string
	old, new string
	packages string
	test     string // which must fail
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	root := flag.String("root", "../..", "the product's source")
	focus := flag.String("focus", "", "only mutants whose class or file matches this expression")
	flag.Parse()
	err := all(ctx, *root, *focus)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func all(ctx context.Context, root, focus string) error {
	match, err := regexp.Compile(focus)
	if err != nil {
		return err
	}
	if root, err = filepath.Abs(root); err != nil {
		return err
	}
	alive, n := 0, 0
	for _, m := range mutants {
		if !match.MatchString(m.class + " " + m.file) {
			continue
		}
		n++
		began := time.Now()
		red, err := m.run(ctx, root)
		if err != nil {
			return fmt.Errorf("%s: %w", m.class, err)
		}
		verdict := "killed"
		if !red {
			verdict = "ALIVE"
			alive++
		}
		fmt.Printf("%-7s %5.1f s  %-40s %s\n", verdict, time.Since(began).Seconds(), m.test, m.class)
	}
	fmt.Printf("%d of %d mutants killed\n", n-alive, n)
	if alive > 0 {
		return fmt.Errorf("%d protections can be taken out unnoticed", alive)
	}
	return nil
}

// run tells whether the test fails on the mutant. One that does not compile, or a test that is not there, is an error.
func (m mutant) run(ctx context.Context, root string) (red bool, err error) {
	path := filepath.Join(root, m.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		return false, fmt.Errorf("%s has the code %d times: bring the mutant up to date", m.file, n)
	}
	dir, err := os.MkdirTemp("", "yare-mutant-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	changed, overlay := filepath.Join(dir, filepath.Base(m.file)), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		return false, err
	}
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o600); err != nil {
		return false, err
	}
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		return false, err
	}
	c := exec.CommandContext(ctx, "go", "test", "-vet=off", "-count=1", "-timeout=2m", "-run=^"+m.test+"$", m.packages)
	c.Dir = root
	// What a vulnerable runtime leaves mounted goes with the test.
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	c.Env = append(os.Environ(), "GOFLAGS=-overlay="+overlay, "CGO_ENABLED=0")
	out, err := c.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case bytes.Contains(out, []byte("no tests to run")):
		return false, fmt.Errorf("no test %s", m.test)
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")) || bytes.Contains(out, []byte("build init:")):
		return false, fmt.Errorf("it does not build: %s", out)
	case err == nil:
		return false, nil
	}
	return bytes.Contains(out, []byte("--- FAIL: ")), nil
}
