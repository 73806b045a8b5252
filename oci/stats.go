package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Event is what the verb events prints, with runc's names.
type Event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

// Stats measures a container, as runc's event of type "stats".
func (r *Runtime) Stats(id string) (*Event, error) {
	if _, err := r.require("measure", id, specs.StateCreated, specs.StateRunning, "paused"); err != nil {
		return nil, err
	}
	group, err := r.Cgroup(id)
	if err != nil {
		return nil, err
	}
	s, err := group.Stats()
	if err != nil {
		return nil, err
	}
	type m = map[string]any
	return &Event{Type: "stats", ID: id, Data: m{
		"cpu": m{
			"usage":      m{"total": s.CPU.Usage, "kernel": s.CPU.System, "user": s.CPU.User},
			"throttling": m{"periods": s.CPU.Periods, "throttledPeriods": s.CPU.ThrottledPeriods, "throttledTime": s.CPU.Throttled},
		},
		"memory": m{"usage": m{"usage": s.Memory.Usage, "limit": s.Memory.Limit}, "cache": s.Memory.Cache},
		"pids":   m{"current": s.Pids.Current, "limit": s.Pids.Limit},
	}}, nil
}

// Process returns a copy of what a container's first process was made from.
func (r *Runtime) Process(id string) (*specs.Process, error) {
	c, err := r.load(id)
	if err != nil {
		return nil, err
	}
	s, err := c.spec()
	if err != nil {
		return nil, err
	}
	return s.Process, nil
}
