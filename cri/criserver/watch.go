package criserver

import (
	"context"
	"slices"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci/shim"
)

// watch records the exits of a sandbox's containers until its shim ends, and
// that too when nobody wanted it.
func (s *Server) watch(sb *sandbox) {
	for {
		client, err := sb.client()
		if err != nil {
			return // taken apart
		}
		retired := s.hear(sb, client)
		sb.mu.Lock()
		leaving := sb.leaving
		sb.mu.Unlock()
		switch {
		case leaving:
			return
		case retired:
			s.log.Info("nothing runs in the sandbox of an outdated shim any more, it ends", "sandbox", sb.id)
			s.shimDied(sb)
			return
		}
		// The connection has ended, which need not be the shim's end: it lets go of who does not listen in time.
		if !sb.disconnect() || !s.reachAgain(sb) {
			return
		}
	}
}

// hear records exits until the connection ends. It returns true when the shim is one that is to end, and would not by itself.
func (s *Server) hear(sb *sandbox, client *shim.Client) (retired bool) {
	for !s.retired(sb, client) {
		e, ok := <-client.Events()
		if !ok {
			return false
		}
		if c, err := s.findContainer(e.ID); err == nil {
			s.markExited(c, e.Exit, "")
		}
	}
	return true
}

// retired reports whether a sandbox has an outdated shim in which nothing runs any more. Its kubelet can start nothing in it,
// and is to make a new one: it counts as dead.
func (s *Server) retired(sb *sandbox, client *shim.Client) bool {
	return client.Outdated() != nil && !slices.ContainsFunc(s.containersOf(sb.id), func(c *container) bool {
		r := c.record()
		return r.state() == runtimeapi.ContainerState_CONTAINER_RUNNING
	})
}

// shimDied cleans up after a shim that was killed: its containers are killed
// and recorded as failed, the sandbox is not ready.
func (s *Server) shimDied(sb *sandbox) {
	// The call that finds the shim gone must not clean up at the same time.
	sb.op.Lock()
	defer sb.op.Unlock()
	if sb.record().Stopped {
		return
	}
	if err := sb.condemn(); err != nil {
		s.log.Error("record not written", "sandbox", sb.id, "err", err)
	}
	ctx, cancel := context.WithTimeout(s.lasting, 2*killTimeout)
	defer cancel()
	statuses, err := shim.Reap(ctx, s.shimDir(sb.id), s.log)
	if err != nil {
		s.log.Error("shim not reaped", "sandbox", sb.id, "err", err)
	}
	s.recordExits(sb, statuses)
	if err := s.dismantle(ctx, sb); err != nil {
		s.log.Error("sandbox not dismantled, its stop will try again", "sandbox", sb.id, "err", err)
	} else if err := sb.change(func(r *sandboxRecord) { r.Stopped = true }); err != nil {
		s.log.Error("record not written", "sandbox", sb.id, "err", err)
	}
	s.emit(sb, sb.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// recordExits notes how a dead shim's containers ended: as the shim recorded
// it, else killed.
func (s *Server) recordExits(sb *sandbox, statuses []shim.Status) {
	known := map[string]shim.ExitStatus{}
	for _, st := range statuses {
		if st.State == shim.Stopped {
			known[st.ID] = st.Exit
		}
	}
	for _, c := range s.containersOf(sb.id) {
		exit, ok := known[c.id]
		if !ok {
			exit = shim.ExitStatus{Code: 137, Signal: syscall.SIGKILL, At: time.Now()}
		}
		s.markExited(c, exit, "")
	}
}

// markExited records a container's end, once. reason is found out when empty.
func (s *Server) markExited(c *container, exit shim.ExitStatus, reason string) {
	c.mu.Lock()
	if c.starting {
		// StartContainer tells of the start first.
		c.early = &exit
		c.mu.Unlock()
		return
	}
	news := s.recordExit(c, exit, reason)
	c.mu.Unlock()
	if news {
		s.tellExit(c, exit)
	}
}

// recordExit records the container's end and reports whether that is news. c.mu is held.
func (s *Server) recordExit(c *container, exit shim.ExitStatus, reason string) bool {
	if c.rec.Finished != 0 {
		return false
	}
	err := c.change(func(r *containerRecord) {
		r.Finished, r.ExitCode, r.Reason = exit.At.UnixNano(), int32(exit.Code), reason
		if exit.At.IsZero() {
			r.Finished = now()
		}
		if reason == "" {
			r.Reason = exitReason(exit)
		}
	})
	if err != nil {
		// Known at least in memory; the shim's own record remains on disk.
		c.rec.Finished, c.rec.ExitCode = now(), int32(exit.Code)
		s.log.Error("exit not recorded", "container", c.id, "err", err)
	}
	close(c.exited)
	return true
}

func (s *Server) tellExit(c *container, exit shim.ExitStatus) {
	s.log.Debug("container exited", "container", c.id, "code", exit.Code, "oom", exit.OOM)
	s.endRest(c)
	s.emit(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// endRest ends, without waiting for it, what has outlived the container's first process, as with containerd: in a PID namespace of its own the
// kernel does that.
func (s *Server) endRest(c *container) {
	if !c.record().SharesPID {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return // the next server's
	}
	s.background.Go(func() {
		ctx, cancel := context.WithTimeout(s.lasting, killTimeout)
		defer cancel()
		group, err := c.cgroup()
		if err == nil {
			err = group.Kill(ctx)
		}
		if err != nil {
			s.log.Warn("what outlives a container is not killed, it ends with its removal", "container", c.id, "err", err)
		}
	})
}

func exitReason(e shim.ExitStatus) string {
	switch {
	case e.OOM:
		return "OOMKilled"
	case e.Code == 0:
		return "Completed"
	default:
		return "Error"
	}
}
