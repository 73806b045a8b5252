package oci

import (
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/rdt"
)

// class is the container's class of service, nil if it has none.
func (c *record) class(s *specs.Spec) (*rdt.Group, error) {
	if s.Linux == nil || s.Linux.IntelRdt == nil {
		return nil, nil
	}
	root, err := rdt.Mounted()
	if err != nil {
		return nil, err
	}
	return rdt.Of(root, c.ID, s.Linux.IntelRdt)
}

// enterClass makes the container's class of service ready for it. leave is to be called after that, with whether the container has failed.
func (c *creation) enterClass(s *specs.Spec) (leave func(failed bool) error, err error) {
	g, err := c.record.class(s)
	if err != nil || g == nil {
		return func(bool) error { return nil }, err
	}
	if err := g.Create(); err != nil {
		return nil, err
	}
	leave = func(failed bool) error {
		linux.CloseAll(c.class...)
		if failed {
			return g.Remove()
		}
		return nil
	}
	if c.class, err = g.Tasks(nil); err != nil {
		return nil, errors.Join(err, leave(true))
	}
	return leave, nil
}

// leaveClass removes what was made for the container's class of service.
func (c *record) leaveClass() error {
	if !c.Class {
		return nil
	}
	s, err := c.spec()
	if err != nil {
		return err
	}
	g, err := c.class(s)
	if err != nil || g == nil {
		return err
	}
	return g.Remove()
}
