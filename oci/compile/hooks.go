package compile

import (
	"fmt"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/oci/plan"
)

// checkHooks refuses hooks that cannot be run, at whatever point they are.
func checkHooks(h *specs.Hooks) error {
	for _, point := range []struct {
		name string
		list []specs.Hook
	}{
		{"prestart", h.Prestart}, {"createRuntime", h.CreateRuntime}, {"createContainer", h.CreateContainer},
		{"startContainer", h.StartContainer}, {"poststart", h.Poststart}, {"poststop", h.Poststop},
	} {
		for i, hook := range point.list {
			if !path.IsAbs(hook.Path) {
				return fmt.Errorf("hooks.%s[%d].path %q: must be absolute", point.name, i, hook.Path)
			}
			if t := hook.Timeout; t != nil && *t <= 0 {
				return fmt.Errorf("hooks.%s[%d].timeout %d: must be positive", point.name, i, *t)
			}
		}
	}
	return nil
}

func hooks(list []specs.Hook) (out []plan.Hook) {
	for _, h := range list {
		hook := plan.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout != nil {
			hook.Timeout = int32(*h.Timeout)
		}
		out = append(out, hook)
	}
	return out
}
