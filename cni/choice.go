package cni

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/vishvananda/netlink"
)

// Select is the network of a node that has a built-in one: as soon as there is a
// configuration list in the folder whose plugins are there, new pods get theirs from plugins. Pods stay with the network
// that set them up. A list without its plugins is somebody else's (podman leaves one on every host that it is installed
// on, with its plugins in another folder): it is told of and passed over.
type Select struct {
	exec    *Exec
	builtin Network
	log     *slog.Logger

	mu   sync.Mutex
	told string // what is passed over, once told
}

// NewSelect returns a Network of both. builtin may be nil: then there is none until a
// configuration list appears.
func NewSelect(exec *Exec, builtin Network, log *slog.Logger) *Select {
	return &Select{exec: exec, builtin: builtin, log: log}
}

// active is the network for new pods.
func (s *Select) active() Network {
	if s.builtin == nil {
		return s.exec
	}
	lacking, configured := s.exec.lacking()
	s.tell(lacking)
	if configured && lacking == "" {
		return s.exec
	}
	return s.builtin
}

// tell logs what hinders a configuration list from being used, when that changes.
func (s *Select) tell(lacking string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if lacking != s.told && lacking != "" {
		s.log.Warn("network configuration passed over: install its plugins or remove it", "lacking", lacking)
	}
	s.told = lacking
}

// maker is the network that made a namespace, or the active one for somebody else's.
func (s *Select) maker(path string) Network {
	if s.exec.owns(path) {
		return s.exec
	}
	if p, ok := s.builtin.(interface{ Owns(path string) bool }); ok && p.Owns(path) {
		return s.builtin
	}
	return s.active()
}

// NewNamespace implements Network.
func (s *Select) NewNamespace(ctx context.Context) (string, error) {
	return s.active().NewNamespace(ctx)
}

// DeleteNamespace implements Network.
func (s *Select) DeleteNamespace(ctx context.Context, path string) error {
	return s.maker(path).DeleteNamespace(ctx, path)
}

// Setup implements Network.
func (s *Select) Setup(ctx context.Context, p Pod) (*Result, error) {
	return s.maker(p.NetNS).Setup(ctx, p)
}

// Check implements Network.
func (s *Select) Check(ctx context.Context, p Pod) error { return s.maker(p.NetNS).Check(ctx, p) }

// Teardown implements Network. Whichever network knows the pod lets it go.
func (s *Select) Teardown(ctx context.Context, p Pod) error {
	return s.both(func(n Network) error { return n.Teardown(ctx, p) })
}

// Status implements Network.
func (s *Select) Status(ctx context.Context) error { return s.active().Status(ctx) }

// Prune implements Network.
func (s *Select) Prune(ctx context.Context, live []Pod) error {
	return s.both(func(n Network) error { return n.Prune(ctx, live) })
}

func (s *Select) both(f func(Network) error) error {
	err := f(s.exec)
	if s.builtin != nil {
		err = errors.Join(err, f(s.builtin))
	}
	return err
}

// loopbackUp sets lo up in the thread's namespace.
func loopbackUp() error {
	return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}})
}
