package criserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux/cgroupmetrics"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/shim"
)

// sandboxRecord is what sandbox.json holds. Times are in nanoseconds since 1970.
type sandboxRecord struct {
	ID      string
	Config  *runtimeapi.PodSandboxConfig
	Handler string `json:",omitempty"`
	Created int64
	// Complete says that RunPodSandbox got to its end.
	Complete bool
	// Stopped sandboxes have no shim, no network, no mounts.
	Stopped bool `json:",omitempty"`
	// Dead sandboxes are being stopped, or their shim has died: nothing runs in them any more, though they may still have what
	// could not be freed.
	Dead bool `json:",omitempty"`
	// NetNS is the network namespace's path; empty with the host's network.
	NetNS string   `json:",omitempty"`
	IPs   []string `json:",omitempty"`
	// Level is the SELinux level of its containers; empty where there is none.
	Level string `json:",omitempty"`
}

// sandbox is one pod sandbox.
type sandbox struct {
	id      string
	file    string
	config  *runtimeapi.PodSandboxConfig
	created int64
	// op is held during a change, shared by those who make containers; see the
	// package's comment.
	op sync.RWMutex

	mu  sync.Mutex
	rec sandboxRecord
	// shim is nil in a sandbox that was adopted dead, and while the shim is not reached.
	shim *shim.Client
	// leaving says that the shim's end is wanted.
	leaving bool
	usage   cpuSample
	// group is the pod's cgroup, opened when it is first asked for, and given
	// its limits.
	group *cgroup.Group
	given *cgroupmetrics.Given
}

// containerRecord is what container.json holds.
type containerRecord struct {
	ID, Sandbox string
	Metadata    *runtimeapi.ContainerMetadata
	Image       *runtimeapi.ImageSpec
	// ImageID is the image's ID, ImageRef the name with digest it came by.
	ImageID, ImageRef   string
	Labels, Annotations map[string]string              `json:",omitempty"`
	Mounts              []*runtimeapi.Mount            `json:",omitempty"`
	LogPath             string                         `json:",omitempty"`
	Resources           *runtimeapi.ContainerResources `json:",omitempty"`
	User                *runtimeapi.LinuxContainerUser
	// Process is the first process, without arguments: a pattern for exec.
	Process    *specs.Process
	Cgroup     string
	StopSignal string
	// SharesPID says that its PID namespace is not its own, and does not end with its first process.
	SharesPID bool `json:",omitempty"`
	// Volumes are the snapshots of images mounted as volumes.
	Volumes []string `json:",omitempty"`

	Created, Started, Finished int64
	ExitCode                   int32
	Reason, Message            string `json:",omitempty"`
	Complete                   bool
}

// container is one container.
type container struct {
	id      string
	file    string
	sandbox *sandbox
	labels  map[string]string
	created int64
	op      sync.Mutex
	// exited is closed when rec.Finished is set.
	exited chan struct{}

	mu  sync.Mutex
	rec containerRecord
	// starting holds an exit back until StartContainer has told of the start.
	starting bool
	early    *shim.ExitStatus
	// pid is the first process; 0 when it is not known to run.
	pid   int
	group *cgroup.Group
	usage cpuSample
	// layer is what it had written to its root file system when somebody
	// measured that last; nil: nobody has.
	layer *runtimeapi.FilesystemUsage
	given *cgroupmetrics.Given // the cgroup's limits
}

// state is derived: nothing else can disagree with it.
func (r *containerRecord) state() runtimeapi.ContainerState {
	switch {
	case r.Finished != 0:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case r.Started != 0:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	default:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	}
}

func (r *sandboxRecord) state() runtimeapi.PodSandboxState {
	if r.Stopped || r.Dead || !r.Complete {
		return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return runtimeapi.PodSandboxState_SANDBOX_READY
}

// namespaceOptions are the wishes in a sandbox's configuration.
func namespaceOptions(c *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func isHostNetwork(c *runtimeapi.PodSandboxConfig) bool {
	return namespaceOptions(c).GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// change edits the record and writes it down before anyone can see it changed.
func (sb *sandbox) change(edit func(*sandboxRecord)) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	r := sb.rec
	edit(&r)
	if err := writeRecord(sb.file, r); err != nil {
		return err
	}
	sb.rec = r
	return nil
}

// condemn makes the sandbox one that is not ready, for good: also where that cannot be written down.
func (sb *sandbox) condemn() error {
	err := sb.change(func(r *sandboxRecord) { r.Dead = true })
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.rec.Dead = true
	return err
}

// client is the connection to the shim. The error is [shim.ErrGone] where there is none any more, and errUnreached where there is none yet.
func (sb *sandbox) client() (*shim.Client, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.shim == nil && !sb.rec.Dead && !sb.rec.Stopped {
		return nil, errUnreached
	}
	if sb.shim == nil {
		return nil, fmt.Errorf("the sandbox is dead: %w", shim.ErrGone)
	}
	return sb.shim, nil
}

func (sb *sandbox) record() sandboxRecord {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.rec
}

func (c *container) record() containerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// change is as of sandbox. Preconditions: c.mu is held.
func (c *container) change(edit func(*containerRecord)) error {
	r := c.rec
	edit(&r)
	if err := writeRecord(c.file, r); err != nil {
		return err
	}
	c.rec = r
	return nil
}

// writeRecord replaces a file at once.
func writeRecord(file string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", file, err)
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

func readRecord[T any](file string) (v T, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fmt.Errorf("decode %s: %w", file, err)
	}
	return v, nil
}

func now() int64 { return time.Now().UnixNano() }

// reserve takes a name, so that a call repeated while the first still runs does
// not make a second pod or container of the same attempt.
func (s *Server) reserve(name, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.serving {
		return status.Error(codes.Unavailable, "the runtime is not running")
	}
	if holder, ok := s.names[name]; ok {
		return status.Errorf(codes.AlreadyExists, "%s is reserved for %s", name, holder)
	}
	s.names[name] = id
	return nil
}

func (s *Server) release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.names, name)
}

func sandboxName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("sandbox %s/%s, UID %s, attempt %d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

func containerName(sandbox string, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("container %s of sandbox %s, attempt %d", m.GetName(), sandbox, m.GetAttempt())
}

// addSandbox makes a sandbox with a shim known and watched. When the server is
// leaving meanwhile, the next one will adopt it.
func (s *Server) addSandbox(sb *sandbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sandboxes[sb.id] = sb
	if s.leaving {
		sb.leave()
		return
	}
	s.background.Go(func() { s.watch(sb) })
}

// leave lets go of the shim, which lives on.
func (sb *sandbox) leave() {
	sb.mu.Lock()
	sb.leaving = true
	client := sb.shim
	sb.mu.Unlock()
	if client != nil {
		client.Close()
	}
}

func (s *Server) addContainer(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[c.id] = c
}

func (s *Server) dropSandbox(sb *sandbox, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, sb.id)
	delete(s.names, name)
}

func (s *Server) dropContainer(c *container, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	delete(s.names, name)
}

// with adds what went wrong while a failed call was undone. Without that, err stays as it is, and a status' message its own.
func with(err, undo error) error {
	if undo == nil {
		return err
	}
	return errors.Join(err, undo)
}

// findSandbox finds by ID or a unique beginning of one. The error is NotFound.
func (s *Server) findSandbox(id string) (*sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return find(s.sandboxes, "sandbox", id)
}

func (s *Server) findContainer(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return find(s.containers, "container", id)
}

func find[T any](all map[string]*T, what, id string) (*T, error) {
	if v, ok := all[id]; ok {
		return v, nil
	}
	var found *T
	for k, v := range all {
		if len(id) < 4 || !strings.HasPrefix(k, id) {
			continue
		}
		if found != nil {
			return nil, status.Errorf(codes.InvalidArgument, "%s %q: several begin so", what, id)
		}
		found = v
	}
	if found == nil {
		return nil, status.Errorf(codes.NotFound, "%s %q: not found", what, id)
	}
	return found, nil
}

// containersOf lists a sandbox's containers.
func (s *Server) containersOf(sandbox string) []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*container
	for _, c := range s.containers {
		if c.sandbox.id == sandbox {
			all = append(all, c)
		}
	}
	return all
}

func (s *Server) newSandbox(rec sandboxRecord) *sandbox {
	return &sandbox{id: rec.ID, rec: rec, config: rec.Config, created: rec.Created, file: filepath.Join(s.sandboxDir(rec.ID), "sandbox.json")}
}

func (s *Server) newContainer(sb *sandbox, rec containerRecord) *container {
	c := &container{id: rec.ID, rec: rec, sandbox: sb, labels: rec.Labels, created: rec.Created, file: filepath.Join(s.containerDir(rec.ID), "container.json"), exited: make(chan struct{})}
	if rec.Finished != 0 {
		close(c.exited)
	}
	return c
}
