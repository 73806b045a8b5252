package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// outputWait is how long the output of a plugin that has ended is waited for: a child that it left may hold it for ever.
	outputWait = time.Second
	// A plugin that is being written cannot be run; it is tried so often, a second apart.
	busyTries = 5
)

// invoker is libcni's way to run plugins: libcni's own waits for ever for a plugin that was killed and left a child.
type invoker struct{ version.PluginDecoder }

// FindInPath implements invoke.Exec.
func (invoker) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin implements invoke.Exec.
func (invoker) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	for try := 1; ; try++ {
		var stdout, stderr bytes.Buffer
		c := exec.CommandContext(ctx, path)
		c.Env, c.Stdin, c.Stdout, c.Stderr, c.WaitDelay = env, bytes.NewReader(stdin), &stdout, &stderr, outputWait
		err := c.Run()
		switch {
		case err == nil || errors.Is(err, exec.ErrWaitDelay): // which is no failure of the plugin's
			return stdout.Bytes(), nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("plugin %s did not end: %w", path, ctx.Err())
		case errors.Is(err, syscall.ETXTBSY) && try <= busyTries:
			time.Sleep(time.Second)
			continue
		}
		told := &types.Error{}
		if json.Unmarshal(stdout.Bytes(), told) == nil && told.Code != 0 {
			return nil, told
		}
		return nil, fmt.Errorf("plugin %s: %w: %s", path, err, strings.TrimSpace(stdout.String()+stderr.String()))
	}
}
