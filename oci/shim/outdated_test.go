package shim_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/ocitest"
	"github.com/yare-dev/yare/oci/shim"
)

// TestOutdated has a client of another release meet containers that run: they go on, can be stopped, and all can be taken down.
func TestOutdated(t *testing.T) {
	for name, hangsUp := range map[string]bool{"other version": false, "hangs up": true} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			pid := s.create(shim.CreateRequest{ID: "c", Spec: s.spec("c", "sh", "-c", "trap 'exit 7' TERM; : > /tmp/ready; while :; do sleep 0.01; done")})
			s.create(shim.CreateRequest{ID: "waits", Spec: s.spec("waits", "sleep", "1000")})
			if err := s.Start(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() bool { _, err := os.Stat(filepath.Join(s.root, "tmp/ready")); return err == nil })
			shimPid := s.Pid()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			ocitest.OldShim(t, s.dir, hangsUp)
			var err error
			if s.Client, err = shim.Connect(t.Context(), s.dir, s.init, s.log); err != nil {
				t.Fatal(err)
			}
			events := s.Events()
			if !errors.Is(s.Outdated(), shim.ErrOutdated) || s.Pid() != shimPid {
				t.Errorf("outdated: %v, pid %d, was %d", s.Outdated(), s.Pid(), shimPid)
			}
			list, err := s.Containers(t.Context())
			if err != nil || len(list) != 2 || list[0].State != shim.Running || list[0].Pid != pid {
				t.Errorf("%+v, %v", list, err)
			}
			var out bytes.Buffer
			_, err = s.Exec(t.Context(), shim.ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"true"}, Cwd: "/"}, Streams: shim.Streams{Stdout: &out}})
			for what, err := range map[string]error{"exec": err, "start": s.Start(t.Context(), "waits"), "reopen": s.ReopenLog(t.Context(), "c")} {
				if !errors.Is(err, shim.ErrOutdated) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := s.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Kill(t.Context(), "c", unix.SIGTERM, false); err != nil {
				t.Fatal(err)
			}
			if e := <-events; e.ID != "c" || e.Exit.Code != 7 {
				t.Errorf("event %+v", e)
			}
			if status, err := s.Wait(t.Context(), "c"); err != nil || status.Code != 7 {
				t.Errorf("%+v, %v", status, err)
			}
			if err := s.Kill(t.Context(), "c", unix.SIGTERM, false); !errors.Is(err, shim.ErrState) {
				t.Error(err)
			}
			if err := s.Delete(t.Context(), "c"); err != nil {
				t.Error(err)
			}
			if err := s.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(shimPid, 0); err != unix.ESRCH {
				t.Errorf("the shim lives: %v", err)
			}
			if _, err := shim.Connect(t.Context(), s.dir, s.init, s.log); !errors.Is(err, shim.ErrGone) {
				t.Error(err)
			}
		})
	}
}
