package criserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/oci/shim"
	"github.com/yare-dev/yare/run"
)

// adoptTogether is how many sandboxes are adopted at the same time: each waits for its shim, or for the kernel to free what a
// dead one has left.
const adoptTogether = 16

// adopt takes up what an earlier process left: running sandboxes are connected
// to, exits that happened meanwhile recorded, and what an interrupted call had
// half made or half removed is removed. One sandbox that cannot be adopted
// does not keep the others from it.
func (s *Server) adopt(ctx context.Context) error {
	if err := s.readSandboxes(ctx); err != nil {
		return err
	}
	if err := s.readContainers(ctx); err != nil {
		return err
	}
	var work errgroup.Group
	work.SetLimit(adoptTogether)
	for _, sb := range s.allSandboxes() {
		if rec := sb.record(); rec.Stopped {
			s.recordExits(sb, nil) // those that could not be recorded when it was stopped
			continue
		}
		work.Go(func() error {
			s.adoptSandbox(ctx, sb)
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	if err := s.dropSnapshots(ctx); err != nil {
		return err
	}
	s.dropShims(ctx)
	s.pruneNetwork(ctx)
	return nil
}

// within bounds what is done for one sandbox: one that does not go must not keep the others from being served.
func within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*killTimeout)
	defer cancel()
	return f(ctx)
}

func (s *Server) allSandboxes() []*sandbox { return s.matchingSandboxes("", nil) }

func (s *Server) readSandboxes(ctx context.Context) error {
	ids, err := os.ReadDir(s.sandboxDir(""))
	if err != nil {
		return err
	}
	for _, e := range ids {
		sb := s.newSandbox(sandboxRecord{ID: e.Name()})
		rec, err := readRecord[sandboxRecord](sb.file)
		if err == nil {
			sb = s.newSandbox(rec)
		}
		if err == nil && rec.Complete && len(rec.ID) == 64 {
			s.sandboxes[sb.id] = sb
			s.names[sandboxName(rec.Config.GetMetadata())] = sb.id
			s.labels.keep(rec.Level)
			continue
		}
		s.log.Info("removing incomplete sandbox", "sandbox", e.Name(), "err", err)
		if len(sb.id) != 64 {
			err = os.RemoveAll(s.sandboxDir(e.Name()))
		} else {
			err = within(ctx, func(ctx context.Context) error { return s.eraseSandbox(ctx, sb) })
		}
		if err != nil {
			s.log.Error("incomplete sandbox not removed", "sandbox", e.Name(), "err", err)
		}
	}
	return nil
}

// readContainers also removes the directories of incomplete containers; their
// processes and snapshots go with those that nobody knows.
func (s *Server) readContainers(_ context.Context) error {
	ids, err := os.ReadDir(s.containerDir(""))
	if err != nil {
		return err
	}
	for _, e := range ids {
		c := s.newContainer(nil, containerRecord{ID: e.Name()})
		rec, err := readRecord[containerRecord](c.file)
		sb := s.sandboxes[rec.Sandbox]
		if err == nil && rec.Complete && sb != nil {
			c = s.newContainer(sb, rec)
			s.addContainer(c)
			s.names[containerName(sb.id, rec.Metadata)] = c.id
			continue
		}
		s.log.Info("removing incomplete container", "container", e.Name(), "err", err)
		if err := os.RemoveAll(s.containerDir(e.Name())); err != nil {
			s.log.Error("incomplete container not removed", "container", e.Name(), "err", err)
		}
	}
	return nil
}

// adoptSandbox connects to a sandbox's shim, or finds out how its containers
// ended.
func (s *Server) adoptSandbox(ctx context.Context, sb *sandbox) {
	client, statuses, err := s.reach(ctx, sb)
	switch {
	case err == nil:
		sb.connect(client)
		s.takeUp(ctx, sb, client, statuses)
		s.addSandbox(sb)
		if sb.record().Dead {
			s.finishStop(ctx, sb)
		}
	case errors.Is(err, shim.ErrGone):
		s.log.Warn("sandbox has no shim any more, its containers have ended", "sandbox", sb.id, "err", err)
		s.shimDied(sb)
	default:
		s.background.Go(func() {
			if s.reachAgain(sb) {
				s.watch(sb)
			}
		})
	}
}

// finishStop goes on with the stop of a sandbox that a server was killed in: it is not ready any more, and need not be stopped again to be gone.
func (s *Server) finishStop(ctx context.Context, sb *sandbox) {
	sb.op.Lock()
	defer sb.op.Unlock()
	if err := within(ctx, func(ctx context.Context) error { return s.stopSandbox(ctx, sb) }); err != nil {
		s.log.Error("sandbox not dismantled, its stop will try again", "sandbox", sb.id, "err", err)
	}
}

// takeUp makes known what a shim says, of which we have missed something.
func (s *Server) takeUp(ctx context.Context, sb *sandbox, client *shim.Client, statuses []shim.Status) {
	log := s.log.With("sandbox", sb.id)
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if err := client.Outdated(); err != nil {
		rec := sb.record()
		log.Warn("sandbox is adopted but nothing new can be run in it", "namespace", rec.Config.GetMetadata().GetNamespace(),
			"pod", rec.Config.GetMetadata().GetName(), "err", err)
	}
	known := map[string]shim.Status{}
	for _, st := range statuses {
		known[st.ID] = st
		if _, err := s.findContainer(st.ID); err != nil && client.Outdated() == nil {
			log.Info("removing container of an interrupted call", "container", st.ID)
			if err := deleteUnknown(ctx, client, st.ID); err != nil {
				log.Error("container not removed, it ends with its sandbox", "container", st.ID, "err", err)
			}
		}
	}
	if err := client.Sweep(ctx); err != nil {
		log.Error("containers of interrupted calls not removed", "err", err)
	}
	for _, c := range s.containersOf(sb.id) {
		st, ok := known[c.id]
		if !ok {
			// Its removal had begun, or the shim lost it: either way it is gone.
			s.markExited(c, shim.ExitStatus{Code: 137}, "")
			continue
		}
		if c.record().Finished != 0 {
			s.endRest(c)
		}
		s.adoptContainer(c, st)
		if st.State == shim.Running {
			if err := c.thaw(); err != nil {
				log.Error("container may be frozen", "container", c.id, "err", err)
			}
		}
	}
}

// thaw lets a container go on that was frozen to be killed, on cgroup v1, by a process that was itself killed before it did. CRI has no other use of
// the freezer. Whoever wanted the container to end asks again.
func (c *container) thaw() error {
	group, err := c.cgroup()
	if err != nil {
		return err
	}
	if _, ok := group.Dirs()["freezer"]; !ok {
		return nil
	}
	// Without asking: the kernel may take for ever to say whether it is frozen.
	if err := group.Thaw(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil // it has ended meanwhile
}

// deleteTimeout bounds the removal of a container whose creation broke off at
// an unknown point: one that does not end must not hold up the others.
const deleteTimeout = 2 * time.Second

func deleteUnknown(ctx context.Context, client *shim.Client, id string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	err := client.Kill(ctx, id, syscall.SIGKILL, true)
	if err == nil || errors.Is(err, shim.ErrState) {
		err = client.Delete(ctx, id)
	}
	if errors.Is(err, shim.ErrNotFound) {
		return nil
	}
	return err
}

// adoptContainer brings a record up to what the shim knows.
func (s *Server) adoptContainer(c *container, st shim.Status) {
	c.mu.Lock()
	c.pid = st.Pid
	started := st.State == shim.Running || st.State == shim.Stopped
	if started && c.rec.Started == 0 && !st.StartedAt.IsZero() {
		if err := c.change(func(r *containerRecord) { r.Started = st.StartedAt.UnixNano() }); err != nil {
			s.log.Error("start not recorded", "container", c.id, "err", err)
		}
	}
	c.mu.Unlock()
	if st.State == shim.Stopped {
		s.markExited(c, st.Exit, "")
	}
}

// dropSnapshots removes root file systems of containers that are not known.
func (s *Server) dropSnapshots(ctx context.Context) error {
	snapshots, err := s.images.Snapshots()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, sn := range snapshots {
		if len(sn.Key) >= 64 && s.containers[sn.Key[:64]] != nil {
			continue
		}
		if err := s.images.Unmount(ctx, sn.Key); err != nil {
			s.log.Error("snapshot of no container not removed", "container", sn.Key, "err", err)
		}
	}
	return nil
}

// dropShims ends shims of sandboxes that are not known.
func (s *Server) dropShims(ctx context.Context) {
	entries, err := os.ReadDir(s.cfg.RunDir)
	if err != nil {
		s.log.Error("shims not listed", "err", err)
		return
	}
	known := map[string]bool{}
	for id := range s.sandboxes {
		known[id[:20]] = true
	}
	for _, e := range entries {
		if known[e.Name()] || !e.IsDir() {
			continue
		}
		if err := within(ctx, func(ctx context.Context) error { return s.dropShim(ctx, e.Name()) }); err != nil {
			s.log.Error("shim of no sandbox not removed", "sandbox", e.Name(), "err", err)
		}
	}
}

func (s *Server) dropShim(ctx context.Context, name string) error {
	dir := filepath.Join(s.cfg.RunDir, name)
	client, err := shim.Connect(ctx, dir, s.init, s.log)
	if err == nil {
		return client.Shutdown(ctx)
	}
	if _, err := shim.Reap(ctx, dir, s.log); err != nil {
		return err
	}
	return shim.Remove(dir)
}

// pruneNetwork frees namespaces and addresses of sandboxes that are not known. What a network, or a plugin of it, does not let go does not keep
// pods from being run: it is tried again meanwhile.
func (s *Server) pruneNetwork(ctx context.Context) {
	var live []cni.Pod
	for _, sb := range s.allSandboxes() {
		// A dead one has its network until it is stopped.
		if rec := sb.record(); !rec.Stopped && rec.NetNS != "" {
			live = append(live, cni.Pod{ID: rec.ID, NetNS: rec.NetNS})
		}
	}
	err := within(ctx, func(ctx context.Context) error { return s.network.Prune(ctx, live) })
	if err == nil {
		return
	}
	s.log.Error("networks of no sandbox not removed", "err", err)
	if left, ok := errors.AsType[*cni.LeftError](err); ok {
		s.background.Go(func() { s.tearDownLeft(left.Pods) })
	}
}

// Pauses between the attempts to tear down what Prune left.
const (
	leftFirst = time.Second
	leftMost  = 5 * time.Minute
)

func (s *Server) tearDownLeft(pods []cni.Pod) {
	for wait := leftFirst; len(pods) > 0 && run.Pause(s.staying, wait) == nil; wait = min(2*wait, leftMost) {
		pods = slices.DeleteFunc(pods, func(p cni.Pod) bool {
			err := within(s.staying, func(ctx context.Context) error { return s.network.Teardown(ctx, p) })
			if err != nil && s.staying.Err() == nil {
				s.log.Warn("network of no sandbox not removed, which is tried again", "sandbox", p.ID, "err", err)
			}
			return err == nil
		})
	}
}
