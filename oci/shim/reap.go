package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// Reap frees what a dead shim left behind in dir: it kills all processes in
// the cgroups of the sandbox's containers, removes the cgroups, and returns
// what is known about the containers: those without an exit record are Stopped
// with code 137. The state directory remains until [Remove]. It may be repeated.
func Reap(ctx context.Context, dir string, log *slog.Logger) ([]Status, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reap shim: %w", err)
	}
	var r record
	var list []Status
	var errs []error
	if err := readJSON(filepath.Join(dir, recordName), &r); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if words := lastWords(dir); words != "" {
		log.Error("dead shim had something to say", "shim", filepath.Base(dir), "log", words)
	}
	// First what is in the shim's own group: another runtime's program may be about to make a container.
	if err := killCgroup(ctx, r.Cgroup); err != nil {
		return nil, fmt.Errorf("reap shim: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		s, err := reapContainer(ctx, dir, e.Name(), log)
		if err != nil {
			errs = append(errs, fmt.Errorf("reap container %s: %w", e.Name(), err))
			continue
		}
		log.Info("reaped container of dead shim", "container", s.ID, "code", s.Exit.Code)
		list = append(list, s)
	}
	errs = append(errs, freeCgroup(ctx, r.Cgroup))
	return list, errors.Join(errs...)
}

func reapContainer(ctx context.Context, dir, id string, log *slog.Logger) (Status, error) {
	s := Status{ID: id, State: Stopped}
	var state containerState
	err := readJSON(filepath.Join(dir, id, stateName), &state)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	s.Cgroup = state.Cgroup
	if err := freeContainer(ctx, do, filepath.Join(dir, id), id, &state); err != nil {
		return s, err
	}
	if len(state.Poststop) > 0 {
		state.stopped(ctx, log, id)
		state.Poststop = nil // a repetition does not run them again
		if err := writeJSON(filepath.Join(dir, id, stateName), state); err != nil {
			return s, err
		}
	}
	s.Exit, err = readExit(filepath.Join(dir, id))
	if errors.Is(err, os.ErrNotExist) {
		// Its parent died first; we ended it just now, or its end was not seen.
		s.Exit = ExitStatus{Code: 128 + int(unix.SIGKILL), Signal: unix.SIGKILL, At: time.Now()}
		e := protocol.Exit{Code: int32(s.Exit.Code), Signal: int32(s.Exit.Signal), At: s.Exit.At.UnixNano()}
		// Kept, so that a repetition says the same.
		return s, os.WriteFile(filepath.Join(dir, id, exitName), wire.Marshal(&e), 0o600)
	}
	return s, err
}

// Remove deletes the state directory of a dead shim. A missing one is no error.
func Remove(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove shim: %w", err)
	}
	return nil
}
