package criserver

import (
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxBehind is how many events a listener may fall behind before its stream is
// ended; it then lists anew. Nothing is dropped in silence.
const maxBehind = 10_000

// broadcast gives every listener every event from its subscription on, in order.
type broadcast struct {
	mu        sync.Mutex
	listeners map[*listener]struct{}
	closed    bool
}

// listener is one stream's queue.
type listener struct {
	// wake has room for one token: there is something new.
	wake chan struct{}

	mu    sync.Mutex
	queue []*runtimeapi.ContainerEventResponse
	ended error
}

func newBroadcast() *broadcast { return &broadcast{listeners: map[*listener]struct{}{}} }

func (b *broadcast) subscribe() *listener {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &listener{wake: make(chan struct{}, 1)}
	if b.closed {
		l.end(status.Error(codes.Unavailable, "the runtime is stopping"))
	}
	b.listeners[l] = struct{}{}
	return l
}

func (b *broadcast) unsubscribe(l *listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.listeners, l)
}

// idle says that an event would reach nobody, and need not be made.
func (b *broadcast) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.listeners) == 0
}

func (b *broadcast) send(e *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		l.put(e)
	}
}

// close ends all streams, now and later.
func (b *broadcast) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for l := range b.listeners {
		l.end(status.Error(codes.Unavailable, "the runtime is stopping"))
	}
}

func (l *listener) put(e *runtimeapi.ContainerEventResponse) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) >= maxBehind {
		l.ended = status.Error(codes.ResourceExhausted, "listener is too slow, list and listen again")
	} else {
		l.queue = append(l.queue, e)
	}
	l.nudge()
}

func (l *listener) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = err
	l.nudge()
}

func (l *listener) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take returns what has come, and the reason why nothing more will.
func (l *listener) take() ([]*runtimeapi.ContainerEventResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue
	l.queue = nil
	return q, l.ended
}

// GetContainerEvents streams what happens to sandboxes and containers from now
// on: created, started, stopped, deleted, each with the pod's status after it.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	l := s.events.subscribe()
	defer s.events.unsubscribe(l)
	for {
		events, ended := l.take()
		for _, e := range events {
			if err := out.Send(e); err != nil {
				return err
			}
		}
		if ended != nil {
			return ended
		}
		select {
		case <-l.wake:
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

// emit tells the listeners what happened to id, a container's or a sandbox's.
// Preconditions: no mu is held.
func (s *Server) emit(sb *sandbox, id string, what runtimeapi.ContainerEventType) {
	if s.events.idle() {
		return
	}
	rec := sb.record()
	s.events.send(&runtimeapi.ContainerEventResponse{
		ContainerId: id, ContainerEventType: what, CreatedAt: now(),
		PodSandboxStatus: rec.status(), ContainersStatuses: s.statusesOf(sb.id),
	})
}
