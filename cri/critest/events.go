package critest

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
)

func eventCases() []Case {
	return []Case{
		{"a container's life is told in order", 26, eventsContainer},
		{"a sandbox's life is told in order", 26, eventsSandbox},
		{"an event has the states after it", 26, eventsStates},
		{"each listener hears everything", 26, eventsTwo},
		{"a stream ends with its listener", 26, eventsEnd},
	}
}

// ear is an open stream of events.
type ear struct {
	t      *T
	recv   func() (*runtimeapi.ContainerEventResponse, error)
	cancel context.CancelFunc
}

// listen opens a stream, and returns when events come through it: the call itself does not say when it listens.
func (t *T) listen() *ear {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	s, err := t.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatalf("events: %v", err)
	}
	e := &ear{t, s.Recv, cancel}
	first := make(chan error, 1)
	go func() {
		_, err := s.Recv()
		first <- err
	}()
	for {
		t.remove(t.create(t.any(), t.config("true")))
		select {
		case err := <-first:
			if err != nil {
				t.Fatalf("events: %v", err)
			}
			return e
		default:
		}
	}
}

// of hears the next n events of one container or sandbox.
func (e *ear) of(id string, n int) (all []*runtimeapi.ContainerEventResponse) {
	e.t.Helper()
	for len(all) < n {
		event, err := e.recv()
		if err != nil {
			e.t.Fatalf("events: %v after %v", err, all)
		}
		if event.ContainerId == id {
			all = append(all, event)
		}
	}
	return all
}

func kinds(events []*runtimeapi.ContainerEventResponse) (all []string) {
	for _, e := range events {
		all = append(all, e.ContainerEventType.String())
	}
	return all
}

func life() []string {
	return []string{"CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT"}
}

// live runs a container from its creation to its removal.
func (t *T) live() string {
	t.Helper()
	id := t.run(t.any(), t.script("exit 3"))
	t.exited(id)
	t.remove(id)
	return id
}

func eventsContainer(t *T) {
	e := t.listen()
	if got := kinds(e.of(t.live(), 4)); !slices.Equal(got, life()) {
		t.Errorf("%v", got)
	}
}

func eventsSandbox(t *T) {
	e := t.listen()
	pod, _ := t.newPod()
	t.stopPod(pod)
	t.removePod(pod)
	if got := kinds(e.of(pod, 4)); !slices.Equal(got, life()) {
		t.Errorf("%v", got)
	}
}

func eventsStates(t *T) {
	e := t.listen()
	pod := t.own()
	id := t.run(pod, t.script("exit 3"))
	t.exited(id)
	events := e.of(id, 3)
	for _, event := range events {
		if event.PodSandboxStatus.GetId() != pod.id || event.CreatedAt <= 0 {
			t.Errorf("%v", event)
		}
	}
	last := events[2].ContainersStatuses
	if len(last) != 1 || last[0].Id != id || last[0].State != exited || last[0].ExitCode != 3 {
		t.Errorf("%v", events[2])
	}
}

func eventsTwo(t *T) {
	a, b := t.listen(), t.listen()
	id := t.live()
	if x, y := fmt.Sprint(kinds(a.of(id, 4))), fmt.Sprint(kinds(b.of(id, 4))); x != y {
		t.Errorf("%s and %s", x, y)
	}
}

func eventsEnd(t *T) {
	e := t.listen()
	e.cancel()
	for {
		if _, err := e.recv(); err != nil {
			if cri.Code(err) != codes.Canceled {
				t.Errorf("%v", err)
			}
			return
		}
	}
}
