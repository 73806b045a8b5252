package shim_test

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/shim"
)

// TestPoststop: however a container goes, and be it that it never was one, its poststop hooks run once, those behind one that fails too.
func TestPoststop(t *testing.T) {
	for name, goes := range map[string]func(s *sandbox, r shim.CreateRequest){
		"deleted": func(s *sandbox, r shim.CreateRequest) {
			s.create(r)
			if err := s.Delete(s.Context(), "c"); err != nil {
				s.Error(err)
			}
		},
		"not made": func(s *sandbox, r shim.CreateRequest) {
			r.Spec.Hooks.CreateRuntime = []specs.Hook{{Path: "/bin/false"}}
			if _, err := s.Create(s.Context(), r); err == nil {
				s.Error("made")
			}
		},
		"reaped": func(s *sandbox, r shim.CreateRequest) {
			s.create(r)
			if err := unix.Kill(s.Pid(), unix.SIGKILL); err != nil {
				s.Fatal(err)
			}
			<-s.Done()
			for range 2 {
				if _, err := shim.Reap(s.Context(), s.dir, s.log); err != nil {
					s.Error(err)
				}
			}
		},
		"swept": func(s *sandbox, r shim.CreateRequest) {
			s.create(r)
			state, err := os.ReadFile(filepath.Join(s.dir, "c/state.json"))
			if err != nil {
				s.Fatal(err)
			}
			r.Spec.Hooks = nil
			if err := s.Delete(s.Context(), "c"); err != nil {
				s.Fatal(err)
			}
			if err := os.Remove(filepath.Join(s.root, "tmp/poststop")); err != nil {
				s.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(s.dir, "c"), 0o700); err != nil {
				s.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(s.dir, "c/state.json"), state, 0o600); err != nil {
				s.Fatal(err)
			}
			if err := s.Sweep(s.Context()); err != nil {
				s.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			file := filepath.Join(s.root, "tmp/poststop")
			spec := s.spec("c", "sleep", "1000")
			spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/false"}, {Path: "/bin/sh", Args: []string{"sh", "-c", "cat >/dev/null; echo ran >>" + file}}}}
			goes(s, shim.CreateRequest{ID: "c", Spec: spec})
			if b, err := os.ReadFile(file); err != nil || string(b) != "ran\n" {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
}
