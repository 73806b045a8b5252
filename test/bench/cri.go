package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// criTook is how the benchmarks of cri/criserver tell how long calls took.
var criTook = regexp.MustCompile(`took (\w+): \[([0-9. ]*)\]`)

// criCall measures a call by those benchmarks, which are run once for all calls.
func criCall(name string) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		if b.cri == nil {
			if err := b.criCalls(ctx); err != nil {
				return nil, fmt.Errorf("benchmarks of cri/criserver: %w", err)
			}
		}
		if len(b.cri[name]) == 0 {
			return nil, errors.New("not measured")
		}
		return b.cri[name], nil
	}
}

func (b *bench) criCalls(ctx context.Context) error {
	c := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^Benchmark(Pod|ExecSync)$", "-benchtime", fmt.Sprintf("%dx", 10*b.runs), "./cri/criserver")
	c.Dir = "../.."
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	b.cri = map[string][]float64{}
	for _, m := range criTook.FindAllStringSubmatch(string(out), -1) {
		var all []float64
		for _, text := range strings.Fields(m[2]) {
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return err
			}
			all = append(all, v)
		}
		b.cri[m[1]] = all // a benchmark is tried with a single call before
	}
	return nil
}
