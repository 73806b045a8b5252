package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/logs"
)

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	pod, c, ok := s.find(w, r)
	if !ok {
		return
	}
	options, previous, err := logOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	which, err := logOf(pod, c, previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	got, err := s.CRI.Runtime.ContainerStatus(r.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: which})
	if cri.Code(err) == codes.NotFound { // the disk was short: what had ended was removed
		http.Error(w, fmt.Sprintf("unable to retrieve container logs for %s: the container has ended and was removed", which), http.StatusBadRequest)
		return
	}
	if err != nil {
		refuse(w, err)
		return
	}
	var ended <-chan struct{}
	if options.Follow {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		ended = s.ended(ctx, which)
	}
	w.Header().Set("Content-Type", "text/plain")
	out := &flusher{w: w, c: http.NewResponseController(w), each: options.Follow}
	err = logs.Serve(r.Context(), out, got.Status.LogPath, options, ended)
	switch {
	case err == nil || r.Context().Err() != nil:
		out.done()
	case errors.Is(err, fs.ErrNotExist) && !out.wrote:
		http.Error(w, fmt.Sprintf("log of container %q is not there (yet)", c.Name), http.StatusNotFound)
	case !out.wrote:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		s.Log.Debug("log session ended early", "container", c.Name, "err", err)
	}
}

// logOf returns the ID of the run whose log is wanted.
func logOf(pod *corev1.Pod, c *corev1.ContainerStatus, previous bool) (string, error) {
	last := c.LastTerminationState.Terminated
	switch {
	case previous && (last == nil || last.ContainerID == ""):
		return "", fmt.Errorf("previous terminated container %q in pod %q not found", c.Name, pod.Name)
	case previous:
		return id(last.ContainerID), nil
	case c.State.Running != nil, c.State.Terminated != nil && c.ContainerID != "":
		return id(c.ContainerID), nil
	case c.State.Waiting != nil && last != nil && last.ContainerID != "":
		return id(last.ContainerID), nil
	case c.State.Waiting != nil:
		reason := c.State.Waiting.Reason
		switch reason {
		case "ErrImagePull", "ImagePullBackOff":
			return "", fmt.Errorf("container %q in pod %q is waiting to start: image can't be pulled", c.Name, pod.Name)
		}
		return "", fmt.Errorf("container %q in pod %q is waiting to start: %s", c.Name, pod.Name, reason)
	}
	return "", fmt.Errorf("container %q in pod %q has no log", c.Name, pod.Name)
}

func logOptions(q url.Values) (o logs.Options, previous bool, err error) {
	number := func(name string) *int64 {
		if !q.Has(name) || err != nil {
			return nil
		}
		n, perr := strconv.ParseInt(q.Get(name), 10, 64)
		if perr != nil || n < 0 {
			err = fmt.Errorf("%s: %q is not a number of zero or more", name, q.Get(name))
		}
		return &n
	}
	o.Follow, o.Timestamps, o.Stream = on(q, "follow"), on(q, "timestamps"), q.Get("stream")
	o.Tail, o.LimitBytes = number("tailLines"), number("limitBytes")
	if n := number("sinceSeconds"); n != nil {
		o.Since = time.Now().Add(-time.Duration(*n) * time.Second)
	}
	if q.Has("sinceTime") && err == nil {
		if o.Since, err = time.Parse(time.RFC3339, q.Get("sinceTime")); err != nil {
			err = fmt.Errorf("sinceTime: %w", err)
		}
	}
	return o, on(q, "previous"), err
}

// ended returns a channel that is closed when the container has ended (or the runtime does not tell).
func (s *Server) ended(ctx context.Context, container string) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		events, err := s.CRI.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err != nil {
			return
		}
		got, err := s.CRI.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container})
		if err != nil || got.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return
		}
		for {
			e, err := events.Recv()
			if err != nil {
				return
			}
			stopped := e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT ||
				e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
			if e.ContainerId == container && stopped {
				return
			}
		}
	}()
	return done
}

// flusher shows followers each line at once.
type flusher struct {
	w     http.ResponseWriter
	c     *http.ResponseController
	each  bool
	wrote bool
}

func (f *flusher) Write(b []byte) (int, error) {
	f.wrote = true
	n, err := f.w.Write(b)
	if err == nil && f.each {
		err = f.c.Flush()
	}
	return n, err
}

func (f *flusher) done() {
	if !f.wrote {
		f.w.WriteHeader(http.StatusOK)
	}
}
