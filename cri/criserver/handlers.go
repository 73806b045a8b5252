package criserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci/shim"
)

// Handler is another OCI runtime, which makes the containers of pods whose RuntimeClass names it: runc, crun, runsc.
type Handler struct {
	// Path of the program, absolute: /usr/bin/crun.
	Path string `json:"path"`
	// Options stand before the verb on each of its command lines: --platform=systrap.
	Options []string `json:"options,omitempty"`
}

// CheckHandlers tells of all problems, each with its field: "crun.path".
func CheckHandlers(handlers map[string]Handler, problem func(field, format string, args ...any)) {
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		for _, text := range validation.IsDNS1123Label(name) {
			problem(name, "not a name for a handler: %s", text)
		}
		if name == handlerName {
			problem(name, "is the name of the built-in runtime")
		}
		h := handlers[name]
		if err := h.check(); err != nil {
			problem(name+".path", "%w", err)
		}
		for i, option := range h.Options {
			if !strings.HasPrefix(option, "-") || option == "--" {
				problem(fmt.Sprintf("%s.options[%d]", name, i), "%q is not an option: they begin with a dash, and have their value after =", option)
			}
		}
	}
}

func (h Handler) check() error {
	if !filepath.IsAbs(h.Path) {
		return fmt.Errorf("%q is not an absolute path", h.Path)
	}
	st, err := os.Stat(h.Path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not a program", h.Path)
	}
	return nil
}

// handler is a configured one. nil is the built-in runtime.
type handler struct {
	runtime  *shim.Runtime
	features *runtimeapi.RuntimeHandlerFeatures
}

// Bounds of a runtime's answer: what it may take, and how long it may be, in bytes.
const (
	featuresTimeout = 10 * time.Second
	mostFeatures    = 1 << 20
)

// openHandlers asks the runtimes what they can do, all at once.
func openHandlers(ctx context.Context, configured map[string]Handler, facts hostFacts, log *slog.Logger) map[string]*handler {
	all := map[string]*handler{}
	var work sync.WaitGroup
	for name, c := range configured {
		h := &handler{runtime: &shim.Runtime{Path: c.Path, Options: c.Options}}
		all[name] = h
		work.Go(func() {
			var err error
			if h.features, err = askFeatures(ctx, c, facts); err != nil {
				log.Info("runtime does not tell its features: pods of its handler do without", "handler", name, "err", err)
			}
		})
	}
	work.Wait()
	return all
}

func askFeatures(ctx context.Context, c Handler, facts hostFacts) (*runtimeapi.RuntimeHandlerFeatures, error) {
	ctx, cancel := context.WithTimeout(ctx, featuresTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Path, append(slices.Clone(c.Options), "features")...)
	cmd.WaitDelay = time.Second // a child of its own may have the pipe
	var out answer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		return &runtimeapi.RuntimeHandlerFeatures{}, err
	}
	return handlerFeatures(out.text.Bytes(), facts)
}

// answer is what a runtime prints, up to mostFeatures.
type answer struct{ text bytes.Buffer }

// Write implements io.Writer.
func (a *answer) Write(b []byte) (int, error) {
	if a.text.Len()+len(b) > mostFeatures {
		return 0, errors.New("the answer is too long")
	}
	return a.text.Write(b)
}

// handlerFeatures reads what OCI's command features prints. A pod's user namespace needs mapped mounts too.
func handlerFeatures(told []byte, facts hostFacts) (*runtimeapi.RuntimeHandlerFeatures, error) {
	var f features.Features
	out := &runtimeapi.RuntimeHandlerFeatures{}
	if err := json.Unmarshal(told, &f); err != nil {
		return out, fmt.Errorf("decode features: %w", err)
	}
	out.RecursiveReadOnlyMounts = slices.Contains(f.MountOptions, "rro")
	if l := f.Linux; l != nil && l.MountExtensions != nil && l.MountExtensions.IDMap != nil && l.MountExtensions.IDMap.Enabled != nil {
		out.UserNamespaces = facts.Users && *l.MountExtensions.IDMap.Enabled && slices.Contains(l.Namespaces, "user")
	}
	return out, nil
}

// handlerOf finds a RuntimeClass's handler; nil is the built-in one. One that is not configured is an error.
func (s *Server) handlerOf(name string) (*handler, error) {
	if isBuiltIn(name) {
		return nil, nil
	}
	if h, ok := s.handlers[name]; ok {
		return h, nil
	}
	return nil, status.Errorf(codes.InvalidArgument, "runtime handler %q is not configured", name)
}

func isBuiltIn(handler string) bool { return handler == "" || handler == handlerName }

// takesPod refuses a pod that the runtime cannot run.
func (h *handler) takesPod(name string, config *runtimeapi.PodSandboxConfig) error {
	if h != nil && ownUsers(config) != nil && !h.features.UserNamespaces {
		return status.Errorf(codes.InvalidArgument, "runtime handler %q does not support user namespaces with mapped mounts", name)
	}
	return nil
}

// takes refuses a container that the runtime cannot run.
func (h *handler) takes(name string, config *runtimeapi.ContainerConfig) error {
	if h == nil || h.features.RecursiveReadOnlyMounts {
		return nil
	}
	for _, m := range config.GetMounts() {
		if m.RecursiveReadOnly {
			return status.Errorf(codes.InvalidArgument, "mount %s: runtime handler %q does not support recursive read-only mounts", m.ContainerPath, name)
		}
	}
	return nil
}
