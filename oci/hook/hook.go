// Package hook runs OCI hooks in the runtime's own namespaces: prestart,
// createRuntime, poststart and poststop. Those that run inside a container are
// yare-init's.
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Run runs the hooks one after the other with the state as their input, and
// stops at the first that fails, with what it wrote to its standard error.
func Run(ctx context.Context, hooks []specs.Hook, state *specs.State) error {
	if len(hooks) == 0 {
		return nil
	}
	input, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	for _, h := range hooks {
		if err := run(ctx, h, input); err != nil {
			return fmt.Errorf("run hook %s: %w", h.Path, err)
		}
	}
	return nil
}

func run(ctx context.Context, h specs.Hook, input []byte) error {
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
