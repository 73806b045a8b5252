package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/wire"
)

// record is what is kept of a container. It is not JSON: every verb reads it, and encoding/json would take longer to look at
// the types than all else that most verbs do.
type record struct {
	ID          string
	Bundle      string
	Rootfs      string
	Pid         int
	StartTime   uint64 // of Pid, against reuse
	Created     time.Time
	Cgroup      string
	Annotations map[string]string
	// Enter are CLONE_NEW flags of namespaces that further processes join, beyond launch.Before.
	Enter  int
	Shared *sharedRoot
	// The spec is kept as it came, and read by those few verbs that need it.
	Spec      []byte
	Poststart []specs.Hook
	Poststop  []specs.Hook
	Class     bool // linux.intelRdt is set
}

// recordVersion changes when the fields do; what containers of the one before have is read still.
const recordVersion, formerVersion = "yare-oci-2", "yare-oci-1"

// Fields implements wire.Message.
func (c *record) Fields(w *wire.Codec) {
	version := recordVersion
	w.String(&version)
	if version != recordVersion && version != formerVersion {
		w.Fail(fmt.Errorf("of another version: %q", version))
		return
	}
	for _, s := range []*string{&c.ID, &c.Bundle, &c.Rootfs, &c.Cgroup} {
		w.String(s)
	}
	wire.Num(w, &c.Pid)
	w.Uint64(&c.StartTime)
	nanos := c.Created.UnixNano()
	wire.Num(w, &nanos)
	c.Created = time.Unix(0, nanos).UTC()
	wire.StringMap(w, &c.Annotations)
	wire.Num(w, &c.Enter)
	wire.Optional(w, &c.Shared, func(s *sharedRoot) { w.String(&s.Namespace); w.Uint64(&s.ID); w.Uint64(&s.Before) })
	w.Bytes(&c.Spec)
	hookFields(w, &c.Poststart)
	hookFields(w, &c.Poststop)
	if version != formerVersion {
		w.Bool(&c.Class)
	}
}

func hookFields(w *wire.Codec, list *[]specs.Hook) {
	wire.List(w, list, func(h *specs.Hook) {
		w.String(&h.Path)
		w.Strings(&h.Args)
		w.Strings(&h.Env)
		wire.Optional(w, &h.Timeout, func(n *int) { wire.Num(w, n) })
	})
}

// spec reads the spec.
func (c *record) spec() (*specs.Spec, error) {
	s, err := decodeSpec(c.Spec)
	if err != nil {
		return nil, fmt.Errorf("parse spec of container %s: %w", c.ID, err)
	}
	return s, nil
}

func (c *record) state(status specs.ContainerState) *specs.State {
	s := &specs.State{Version: specs.Version, ID: c.ID, Status: status, Bundle: c.Bundle, Annotations: c.Annotations}
	if status != specs.StateStopped {
		s.Pid = c.Pid
	}
	return s
}

func (r *Runtime) load(id string) (*record, error) {
	if !validID(id) {
		return nil, fmt.Errorf("container %q: invalid identifier", id)
	}
	b, err := linux.ReadFile(unix.AT_FDCWD, filepath.Join(r.dir(id), recordName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("container %s: %w", id, ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	if len(b) == 0 { // about to be written
		return nil, fmt.Errorf("container %s: %w", id, ErrNotExist)
	}
	c := new(record)
	if err := wire.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("parse state of container %s: %w", id, err)
	}
	return c, nil
}

// write writes the record down. What it says of the process is known to nobody before publish.
func (r *Runtime) write(c *record) error {
	path := filepath.Join(r.dir(c.ID), recordName)
	if c.Pid != 0 {
		path += newSuffix
	}
	if err := linux.CreateFile(path, wire.Marshal(c), 0o600); err != nil {
		return fmt.Errorf("save container %s: %w", c.ID, err)
	}
	return nil
}

func (r *Runtime) publish(c *record) error {
	path := filepath.Join(r.dir(c.ID), recordName)
	if err := unix.Rename(path+newSuffix, path); err != nil {
		return fmt.Errorf("save container %s: %w", c.ID, linux.Wrap("rename to", path, err))
	}
	return nil
}

const newSuffix = ".new"
