package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// peer answers the few calls that the tests make.
type peer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	version *runtimeapi.VersionResponse
	ended   chan struct{}
}

func (p *peer) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return p.version, nil
}

func (p *peer) ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return nil, fmt.Errorf("find container c1: %w", status.Error(codes.NotFound, "no such container"))
}

func (p *peer) StreamContainers(_ *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	for _, id := range []string{"a", "b", "c"} {
		m := &runtimeapi.StreamContainersResponse{Containers: []*runtimeapi.Container{{Id: id}}}
		if err := out.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (p *peer) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	defer close(p.ended)
	if err := out.Send(&runtimeapi.ContainerEventResponse{ContainerId: "c1"}); err != nil {
		return err
	}
	<-out.Context().Done()
	return out.Context().Err()
}

// clients returns the same server in process and over a socket.
func clients(t *testing.T, p *peer) map[string]*Client {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, p)
	runtimeapi.RegisterImageServiceServer(s, p)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	remote, err := Dial(t.Context(), "unix://"+sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remote.Close() })
	return map[string]*Client{"in process": InProcess(p), "socket": remote}
}

func TestCallsAndErrors(t *testing.T) {
	p := &peer{version: &runtimeapi.VersionResponse{RuntimeName: "yare"}}
	for name, c := range clients(t, p) {
		t.Run(name, func(t *testing.T) {
			v, err := c.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
			if err != nil || v.RuntimeName != "yare" {
				t.Fatalf("Version = %v, %v", v, err)
			}
			_, err = c.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{})
			if Code(err) != codes.NotFound {
				t.Errorf("ContainerStatus: code %v, want NotFound (%v)", Code(err), err)
			}
			_, err = c.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{})
			if Code(err) != codes.Unimplemented {
				t.Errorf("PullImage: code %v, want Unimplemented", Code(err))
			}
		})
	}
	got, _ := InProcess(p).Runtime.Version(t.Context(), nil)
	if got != p.version {
		t.Error("in process, Version returned a copy")
	}
}

func TestStreamToItsEnd(t *testing.T) {
	for name, c := range clients(t, &peer{version: &runtimeapi.VersionResponse{}}) {
		t.Run(name, func(t *testing.T) {
			s, err := c.Runtime.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
			if err != nil {
				t.Fatal(err)
			}
			var ids string
			for {
				m, err := s.Recv()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				ids += m.Containers[0].Id
			}
			if ids != "abc" {
				t.Errorf("received %q, want abc", ids)
			}
		})
	}
}

func TestStreamEndsWithContext(t *testing.T) {
	p := &peer{version: &runtimeapi.VersionResponse{}}
	for name, c := range clients(t, p) {
		t.Run(name, func(t *testing.T) {
			p.ended = make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			s, err := c.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if m, err := s.Recv(); err != nil || m.ContainerId != "c1" {
				t.Fatalf("Recv = %v, %v", m, err)
			}
			cancel()
			if _, err := s.Recv(); Code(err) != codes.Canceled {
				t.Errorf("Recv after cancel: %v", err)
			}
			<-p.ended
		})
	}
}

func TestCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{errors.New("x"), codes.Unknown},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("stop: %w", status.Error(codes.NotFound, "gone")), codes.NotFound},
	} {
		if got := Code(c.err); got != c.want {
			t.Errorf("Code(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

func TestDialRefusesNonPaths(t *testing.T) {
	for _, e := range []string{"", "tcp://1.2.3.4:5", "relative.sock"} {
		if _, err := Dial(t.Context(), e); err == nil {
			t.Errorf("Dial(%q) succeeded", e)
		}
	}
}
