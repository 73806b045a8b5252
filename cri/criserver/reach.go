package criserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/yare-dev/yare/oci/shim"
)

// answerLimit is how long a shim may take to tell of its containers.
const answerLimit = 10 * time.Second

// A shim that is not reached need not be dead: a host may be out of descriptors or memory, or so busy that nobody answers. It is asked again
// every reachEvery, and only after reachLimit taken for dead, and what runs there killed. One that is dead is known at once.
const (
	reachEvery = time.Second
	reachLimit = 2 * time.Minute
)

// errUnreached says that a sandbox's shim is not reached at the moment.
var errUnreached = errors.New("the sandbox's shim is not reached, which is tried again")

// reach connects to a sandbox's shim and asks what it has. The error is [shim.ErrGone] only where there is nobody to connect to.
func (s *Server) reach(ctx context.Context, sb *sandbox) (*shim.Client, []shim.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	client, err := shim.Connect(ctx, s.shimDir(sb.id), s.init, s.log)
	if err != nil {
		return nil, nil, err
	}
	statuses, err := client.Containers(ctx)
	if err != nil {
		client.Close()
		return nil, nil, fmt.Errorf("list containers: %v", err) // if it is dead the next to connect is told so
	}
	return client, statuses, nil
}

// reachAgain connects to the shim of a sandbox that has no connection. It returns false when there is nothing to watch any more: the shim is dead, and
// what was there of it is cleaned up; or somebody takes the sandbox apart; or we leave.
func (s *Server) reachAgain(sb *sandbox) bool {
	wait := time.NewTicker(reachEvery)
	defer wait.Stop()
	for begin := time.Now(); ; {
		err := s.tryReach(sb)
		switch {
		case err == nil:
			return true
		case errors.Is(err, errUnwanted) || s.staying.Err() != nil:
			return false
		case errors.Is(err, shim.ErrGone) || time.Since(begin) > reachLimit:
			s.log.Error("shim died, its containers are killed", "sandbox", sb.id, "err", err)
			s.shimDied(sb)
			return false
		}
		s.log.Warn("shim is not reached, which is tried again", "sandbox", sb.id, "err", err)
		select {
		case <-wait.C:
		case <-s.staying.Done():
			return false
		}
	}
}

// errUnwanted says that a sandbox's shim is not looked for any more.
var errUnwanted = errors.New("the sandbox is taken apart")

// tryReach is one attempt.
func (s *Server) tryReach(sb *sandbox) error {
	// Nobody takes the sandbox apart, or makes containers, meanwhile.
	sb.op.Lock()
	defer sb.op.Unlock()
	sb.mu.Lock()
	unwanted, connected := sb.leaving || sb.rec.Dead || sb.rec.Stopped, sb.shim != nil
	sb.mu.Unlock()
	if unwanted {
		return errUnwanted
	}
	if connected {
		return nil
	}
	client, statuses, err := s.reach(s.staying, sb)
	if err != nil {
		return err
	}
	if !sb.connect(client) {
		client.Close()
		return errUnwanted
	}
	s.takeUp(s.lasting, sb, client, statuses)
	return nil
}

// connect gives the sandbox its connection, unless it is let go of meanwhile.
func (sb *sandbox) connect(c *shim.Client) bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.leaving {
		return false
	}
	sb.shim = c
	return true
}

// disconnect is connect's opposite, when the connection has ended by itself. It returns false for a sandbox whose connection was to end.
func (sb *sandbox) disconnect() bool {
	sb.mu.Lock()
	lost := sb.shim
	if sb.leaving {
		lost = nil
	} else {
		sb.shim = nil
	}
	sb.mu.Unlock()
	if lost == nil {
		return false
	}
	lost.Close()
	return true
}
