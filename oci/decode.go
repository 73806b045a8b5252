package oci

import (
	"bytes"
	"encoding/json"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A process per verb feels what encoding/json does before it decodes: it looks at a type with all types in it, whether they come
// up or not. A spec's, with other platforms and limits of every kind, take it longer than a container's cgroups take the kernel.
// So the parts that are seldom there, or large, are decoded only when they are.

// spec is a specs.Spec whose parts beside Process, Root and Mounts are kept as they came.
type spec struct {
	*specs.Spec
	Hooks   json.RawMessage `json:"hooks"`
	Linux   *linuxSpec      `json:"linux"`
	Solaris json.RawMessage `json:"solaris"`
	Windows json.RawMessage `json:"windows"`
	VM      json.RawMessage `json:"vm"`
	ZOS     json.RawMessage `json:"zos"`
	FreeBSD json.RawMessage `json:"freebsd"`
}

// linuxSpec is a specs.Linux in the same way.
type linuxSpec struct {
	*specs.Linux
	Resources    json.RawMessage `json:"resources"`
	Devices      json.RawMessage `json:"devices"`
	NetDevices   json.RawMessage `json:"netDevices"`
	Seccomp      json.RawMessage `json:"seccomp"`
	IntelRdt     json.RawMessage `json:"intelRdt"`
	MemoryPolicy json.RawMessage `json:"memoryPolicy"`
	Personality  json.RawMessage `json:"personality"`
	TimeOffsets  json.RawMessage `json:"timeOffsets"`
}

// decodeSpec is json.Unmarshal for a spec.
func decodeSpec(text []byte) (*specs.Spec, error) {
	s := &spec{Spec: new(specs.Spec)}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, err
	}
	out := s.Spec
	parts := []struct {
		raw  json.RawMessage
		into any
	}{{s.Hooks, &out.Hooks}, {s.Solaris, &out.Solaris}, {s.Windows, &out.Windows}, {s.VM, &out.VM}, {s.ZOS, &out.ZOS}, {s.FreeBSD, &out.FreeBSD}}
	if l := s.Linux; l != nil {
		if l.Linux == nil {
			l.Linux = new(specs.Linux)
		}
		out.Linux = l.Linux
		parts = append(parts, []struct {
			raw  json.RawMessage
			into any
		}{{l.Resources, &out.Linux.Resources}, {l.Devices, &out.Linux.Devices}, {l.NetDevices, &out.Linux.NetDevices},
			{l.Seccomp, &out.Linux.Seccomp}, {l.IntelRdt, &out.Linux.IntelRdt}, {l.MemoryPolicy, &out.Linux.MemoryPolicy},
			{l.Personality, &out.Linux.Personality}, {l.TimeOffsets, &out.Linux.TimeOffsets}}...)
	}
	for _, p := range parts {
		if len(p.raw) == 0 || bytes.Equal(p.raw, []byte("null")) {
			continue
		}
		if err := json.Unmarshal(p.raw, p.into); err != nil {
			return nil, err
		}
	}
	return out, nil
}
