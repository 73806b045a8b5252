package critest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/linux"
)

// patience bounds every wait: what is not there by then will not come.
const patience = 2 * time.Minute

// atOnce is how many cases run side by side, whatever -parallel says: they wait for the server most of the time.
const atOnce = 8

// suite is what the cases of one run share.
type suite struct {
	Target
	images *images
	root   testing.TB
	places chan struct{}
	n      atomic.Int64
	groups sync.Map // cgroups that somebody removes in the end
	common sync.Once
	// pod is a sandbox for cases that need any, with its configuration.
	pod       string
	podConfig *runtimeapi.PodSandboxConfig
}

func newSuite(t *testing.T, target Target) *suite {
	t.Helper()
	s := &suite{Target: target, root: t, places: make(chan struct{}, atOnce)}
	s.images = newImages(t, target)
	st := &T{TB: t, suite: s}
	st.pull(s.images.box)
	return s
}

// unique is a name that nothing else of this run has.
func (s *suite) unique(what string) string { return fmt.Sprintf("%s%d", what, s.n.Add(1)) }

// folder makes a folder that the server sees as well.
func (t *T) folder() string {
	t.Helper()
	dir := filepath.Join(t.Dir, t.unique("dir"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// file writes a file into a new folder.
func (t *T) file(name, text string) string {
	t.Helper()
	path := filepath.Join(t.folder(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// sandboxConfig is a usual pod's, with a name of its own.
func (t *T) sandboxConfig() *runtimeapi.PodSandboxConfig {
	name := t.unique("pod")
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "critest", Uid: "uid-" + name, Attempt: 1},
		Hostname:     name,
		LogDirectory: t.logFolder(name),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{"pod": name},
		Annotations:  map[string]string{"note": "of " + name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    t.CgroupParent + "/" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
}

func (t *T) logFolder(pod string) string {
	t.Helper()
	dir := filepath.Join(t.Dir, "logs", pod)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// runPod runs a sandbox and removes it in the end.
func (t *T) runPod(config *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	id, err := t.tryRun(t.TB, config, "")
	if err != nil {
		t.Fatalf("run sandbox: %v", err)
	}
	return id
}

// newPod is a usual pod, changed.
func (t *T) newPod(change ...func(*runtimeapi.PodSandboxConfig)) (string, *runtimeapi.PodSandboxConfig) {
	t.Helper()
	config := t.sandboxConfig()
	for _, c := range change {
		c(config)
	}
	return t.runPod(config), config
}

// tryRun runs a sandbox, and takes it away when tb ends; then its cgroup, which attempts of a pod share.
func (s *suite) tryRun(tb testing.TB, config *runtimeapi.PodSandboxConfig, handler string) (id string, err error) {
	tb.Helper()
	group := config.GetLinux().GetCgroupParent()
	if _, promised := s.groups.LoadOrStore(group, true); !promised {
		tb.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), patience)
			defer cancel()
			if err := s.removeCgroup(ctx, group); err != nil {
				tb.Errorf("remove the pod's cgroup: %v", err)
			}
		})
	}
	r, err := s.Runtime.RunPodSandbox(tb.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: cmp.Or(handler, s.Handler)})
	if err != nil {
		return "", err
	}
	s.removeLater(tb, r.PodSandboxId)
	return r.PodSandboxId, nil
}

func (s *suite) removeLater(tb testing.TB, id string) {
	tb.Helper()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), patience)
		defer cancel()
		if _, err := s.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil && cri.Code(err) != codes.NotFound {
			tb.Errorf("stop sandbox: %v", err)
		}
		if _, err := s.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil && cri.Code(err) != codes.NotFound {
			tb.Errorf("remove sandbox: %v", err)
		}
	})
}

// removeCgroup removes a pod's group, which is empty or about to be.
func (s *suite) removeCgroup(ctx context.Context, path string) error {
	if !strings.HasPrefix(path, s.CgroupParent+"/") {
		return nil
	}
	hierarchies, err := linux.Hierarchies()
	for _, h := range hierarchies {
		dir := filepath.Join(h.Root, path)
		for {
			if e := os.Remove(dir); e == nil || errors.Is(e, fs.ErrNotExist) {
				break
			} else if ctx.Err() != nil {
				err = errors.Join(err, e)
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	return err
}

// shared is a pod that cases may put containers into, and do nothing else to.
func (t *T) shared() (string, *runtimeapi.PodSandboxConfig) {
	t.Helper()
	t.common.Do(func() {
		config := t.sandboxConfig()
		id, err := t.tryRun(t.root, config, "")
		if err != nil {
			t.TB.Errorf("run the shared sandbox: %v", err)
			return
		}
		t.suite.pod, t.suite.podConfig = id, config
	})
	if t.suite.pod == "" {
		t.Fatalf("there is no shared sandbox")
	}
	return t.suite.pod, t.suite.podConfig
}

// eventually asks again until done. what is a phrase for "... has not come".
func (t *T) eventually(what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) || t.Context().Err() != nil {
			t.Fatalf("%s has not come", what)
		}
	}
}

// refused checks that a call failed, with one of the codes if any are given.
func (t *T) refused(what string, err error, allowed ...codes.Code) {
	t.Helper()
	if err == nil {
		t.Errorf("%s succeeded", what)
		return
	}
	for _, c := range allowed {
		if cri.Code(err) == c {
			return
		}
	}
	if len(allowed) > 0 {
		t.Errorf("%s: code %v, want %v (%v)", what, cri.Code(err), allowed, err)
	}
}

// info decodes one entry of a verbose answer.
func (t *T) info(all map[string]string, key string) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal([]byte(all[key]), &out); err != nil {
		t.Fatalf("verbose information %q: %v", all, err)
	}
	return out
}
