package campaign_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// perServer is how many shims each client kills until the server is killed as well.
const perServer = 6

// TestShimKilled kills shims, those of every other round while there is no server. Their containers end and are told of as
// killed, those that had ended keep their exit codes, and nothing is left.
func TestShimKilled(t *testing.T) {
	s := newServer(t)
	var mu sync.Mutex
	var took []time.Duration
	for round := 0; len(took) < *shimKills && !t.Failed(); round++ {
		heard := s.listen()
		var all sync.WaitGroup
		victims := make([][]*pod, clients)
		for n := range clients {
			all.Go(func() {
				for i := range perServer {
					p, err := s.victim(fmt.Sprintf("s%d-%d-%d", round, n, i))
					if err != nil {
						t.Error(err)
						return
					}
					if round%2 == 1 {
						victims[n] = append(victims[n], p)
						continue
					}
					at := time.Now()
					err = errors.Join(p.killShim(), heard.stopped(t.Context(), p.id))
					mu.Lock()
					took = append(took, time.Since(at))
					mu.Unlock()
					if err = errors.Join(err, p.buried(t.Context())); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		s.kill()
		at := time.Now()
		for _, p := range slices.Concat(victims...) {
			must(t, p.killShim())
		}
		s.start()
		told := time.Since(at) // they are adopted before the server answers
		for _, p := range slices.Concat(victims...) {
			took = append(took, told)
			must(t, p.buried(t.Context()))
		}
		s.checkHost()
	}
	slices.Sort(took)
	if len(took) == 0 {
		t.Fatal("no shim was killed")
	}
	t.Logf("%d shims killed, told after %d ms (median), %d ms (p99), %d ms (longest)", len(took), took[len(took)/2].Milliseconds(),
		took[len(took)*99/100].Milliseconds(), took[len(took)-1].Milliseconds())
	if *within > 0 && took[len(took)-1] > *within {
		t.Errorf("a death was told after %v, want %v at most", took[len(took)-1], *within)
	}
}

// victim makes a pod with two containers that run and one that has ended.
func (s *server) victim(name string) (*pod, error) {
	p := &pod{s: s, name: name, boxes: []*box{until("a", 1), until("b", 2), count("c", 5, 6)}}
	ctx := s.Context()
	if err := p.run(ctx); err != nil {
		return nil, err
	}
	for _, b := range p.boxes {
		if err := p.create(ctx, b); err != nil {
			return nil, err
		}
		if err := p.start(ctx, b); err != nil {
			return nil, err
		}
	}
	return p, p.over(ctx, p.boxes[2])
}

func (p *pod) killShim() error {
	pids := processes(p.shimGroup())
	if len(pids) != 1 {
		return fmt.Errorf("%s has the shims %v", p.name, pids)
	}
	return syscall.Kill(pids[0], syscall.SIGKILL)
}

// buried looks at a pod without a shim, and removes it.
func (p *pod) buried(ctx context.Context) error {
	r, err := p.s.client.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		return err
	}
	if r.Status.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		return fmt.Errorf("%s has lost its shim and is %v", p.name, r.Status.State)
	}
	for i, code := range []int32{137, 137, 6} {
		b := p.boxes[i]
		s, err := p.status(ctx, b)
		if err != nil {
			return err
		}
		if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != code {
			return fmt.Errorf("%s of %s, which has lost its shim, is %v with code %d, want %d", b.name, p.name, s.State, s.ExitCode, code)
		}
		if code == 137 && born(b.pid) == b.born {
			return fmt.Errorf("%s of %s is told to be dead and runs", b.name, p.name)
		}
	}
	return p.remove(ctx)
}

// ear hears the runtime's events.
type ear struct {
	mu      sync.Mutex
	change  *sync.Cond
	dead    map[string]bool // sandboxes that were told to have stopped
	problem error
}

// listen hears events until the server ends.
func (s *server) listen() *ear {
	s.Helper()
	e := &ear{dead: map[string]bool{}}
	e.change = sync.NewCond(&e.mu)
	stream, err := s.client.GetContainerEvents(s.Context(), &cri.GetEventsRequest{})
	must(s, err)
	go func() {
		for {
			event, err := stream.Recv()
			e.mu.Lock()
			if err != nil {
				e.problem = err
			} else if event.ContainerEventType == cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
				e.dead[event.ContainerId] = true
			}
			e.change.Broadcast()
			e.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return e
}

// stopped returns when a sandbox was told to have stopped.
func (e *ear) stopped(ctx context.Context, id string) error {
	defer context.AfterFunc(ctx, e.change.Broadcast)()
	e.mu.Lock()
	defer e.mu.Unlock()
	for !e.dead[id] {
		if e.problem != nil || ctx.Err() != nil {
			return status.Errorf(codes.Aborted, "nobody told of the end of sandbox %s: %v", id, errors.Join(e.problem, ctx.Err()))
		}
		e.change.Wait()
	}
	return nil
}
