package oci

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/oci/compile"
)

// What features says is what a spec may ask for, each by itself.
func TestFeaturesAreTrue(t *testing.T) {
	t.Parallel()
	f := Features()
	spec := func() *specs.Spec {
		s := DefaultSpec()
		s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}}
		s.Linux.GIDMappings = s.Linux.UIDMappings
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		return s
	}
	try := func(name string, change func(*specs.Spec)) {
		t.Helper()
		s := spec()
		change(s)
		if _, err := compile.Container(s, compile.Facts{Bundle: "/b", CgroupDirs: map[string]string{"": "/c"}, Unified: true}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, o := range f.MountOptions {
		try(o, func(s *specs.Spec) {
			m := specs.Mount{Destination: "/m", Type: "bind", Source: "/", Options: []string{"bind", o}}
			if o == "tmpcopyup" {
				m = specs.Mount{Destination: "/m", Type: "tmpfs", Options: []string{o}}
			}
			s.Mounts = append(s.Mounts, m)
		})
	}
	for _, n := range f.Linux.Namespaces {
		try(n, func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(have specs.LinuxNamespace) bool { return string(have.Type) == n && n != "user" })
			if n != "user" {
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(n)})
			}
		})
	}
	for _, a := range f.Linux.Seccomp.Actions {
		try(a, func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/l",
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.LinuxSeccompAction(a)}}}
		})
	}
	for _, a := range f.Linux.Seccomp.Archs {
		try(a, func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.Arch(a)}}
		})
	}
	for _, flag := range f.Linux.Seccomp.SupportedFlags {
		try(flag, func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/l", Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlag(flag)},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}}
		})
	}
	for _, mode := range f.Linux.MemoryPolicy.Modes {
		for _, flag := range f.Linux.MemoryPolicy.Flags {
			try(mode+flag, func(s *specs.Spec) {
				s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MemoryPolicyModeType(mode), Flags: []specs.MemoryPolicyFlagType{specs.MemoryPolicyFlagType(flag)}}
			})
		}
	}
}
