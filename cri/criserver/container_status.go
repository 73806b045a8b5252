package criserver

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStatus tells about one container.
func (s *Server) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	rec := c.record()
	out := &runtimeapi.ContainerStatusResponse{Status: rec.status()}
	if r.GetVerbose() {
		c.mu.Lock()
		pid := c.pid
		c.mu.Unlock()
		out.Info, err = verbose(map[string]any{
			"id": rec.ID, "sandboxID": rec.Sandbox, "pid": pid, "cgroup": rec.Cgroup, "rootfs": s.images.Rootfs(rec.ID),
		})
	}
	return out, err
}

func (r *containerRecord) status() *runtimeapi.ContainerStatus {
	return &runtimeapi.ContainerStatus{
		Id: r.ID, Metadata: r.Metadata, State: r.state(),
		CreatedAt: r.Created, StartedAt: r.Started, FinishedAt: r.Finished,
		ExitCode: r.ExitCode, Reason: r.Reason, Message: r.Message,
		Image: r.Image, ImageRef: r.ImageRef, ImageId: r.ImageID,
		Labels: r.Labels, Annotations: r.Annotations, Mounts: r.Mounts, LogPath: r.LogPath,
		Resources: r.Resources, User: &runtimeapi.ContainerUser{Linux: r.User}, StopSignal: signalOf(r.StopSignal),
	}
}

// ListContainers lists containers.
func (s *Server) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.listContainers(r.GetFilter())}, nil
}

// StreamContainers is ListContainers in pieces.
func (s *Server) StreamContainers(r *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return inPieces(s.listContainers(r.GetFilter()), func(p []*runtimeapi.Container) error {
		return out.Send(&runtimeapi.StreamContainersResponse{Containers: p})
	})
}

func (s *Server) listContainers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	var all []*runtimeapi.Container
	for _, c := range s.matchingContainers(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()) {
		r := c.record()
		if f.GetState() != nil && f.State.State != r.state() {
			continue
		}
		all = append(all, &runtimeapi.Container{
			Id: r.ID, PodSandboxId: r.Sandbox, Metadata: r.Metadata, State: r.state(), CreatedAt: r.Created,
			Image: r.Image, ImageRef: r.ImageRef, ImageId: r.ImageID, Labels: r.Labels, Annotations: r.Annotations,
		})
	}
	return all
}

// matchingContainers are those with the IDs and the labels, the newest first.
func (s *Server) matchingContainers(id, sandbox string, labels map[string]string) []*container {
	s.mu.Lock()
	var all []*container
	if id != "" {
		if c, err := find(s.containers, "container", id); err == nil {
			all = append(all, c)
		}
	} else {
		for _, c := range s.containers {
			all = append(all, c)
		}
	}
	if sandbox != "" {
		sb, err := find(s.sandboxes, "sandbox", sandbox)
		all = slices.DeleteFunc(all, func(c *container) bool { return err != nil || c.sandbox != sb })
	}
	s.mu.Unlock()
	// Labels and creation never change: they are read without a lock.
	all = slices.DeleteFunc(all, func(c *container) bool { return !matches(c.labels, labels) })
	slices.SortFunc(all, func(a, b *container) int { return int(b.created - a.created) })
	return all
}
