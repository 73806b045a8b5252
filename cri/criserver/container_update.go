package criserver

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci/cgroup"
)

// UpdateContainerResources changes limits of a container that has not ended.
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if r.GetLinux() == nil {
		return nil, status.Error(codes.InvalidArgument, "update container: linux resources are required")
	}
	c.op.Lock()
	defer c.op.Unlock()
	rec := c.record()
	if rec.state() == runtimeapi.ContainerState_CONTAINER_EXITED {
		return nil, status.Error(codes.FailedPrecondition, "the container has ended")
	}
	limits, err := resourcesSpec(r.Linux, s.facts)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	defer c.forgetLimits() // also those of an update that failed half-way
	if err := c.update(ctx, limits); err != nil {
		return nil, err
	}
	merged := mergeResources(rec.Resources.GetLinux(), r.Linux)
	c.mu.Lock()
	defer c.mu.Unlock()
	err = c.change(func(rec *containerRecord) { rec.Resources = &runtimeapi.ContainerResources{Linux: merged} })
	if err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// update changes limits in the kernel, or has the container's runtime do it.
func (c *container) update(ctx context.Context, limits *specs.LinuxResources) error {
	if rec := c.sandbox.record(); !isBuiltIn(rec.Handler) {
		client, err := c.sandbox.client()
		if err != nil {
			return shimError(err)
		}
		return client.Update(ctx, c.id, limits)
	}
	group, err := c.cgroup()
	if err != nil {
		return err
	}
	return group.Update(limits)
}

// mergeResources is what holds after an update: zero leaves a limit as it is.
func mergeResources(old, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		proto.Merge(out, old)
	}
	if len(update.GetHugepageLimits()) > 0 {
		out.HugepageLimits = nil
	}
	proto.Merge(out, update)
	return out
}

// cgroup is opened when it is first asked for.
func (c *container) cgroup() (*cgroup.Group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.group != nil {
		return c.group, nil
	}
	g, err := cgroup.Open(c.rec.Cgroup)
	if err != nil {
		return nil, err
	}
	c.group = g
	return g, nil
}

// UpdatePodSandboxResources tells of a pod's new sum of limits, which become those of its configuration. The pod's cgroup
// is the kubelet's, which has changed it; a sandbox has nothing of its own to
// limit.
func (s *Server) UpdatePodSandboxResources(_ context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	sb.forgetLimits()
	err = sb.change(func(rec *sandboxRecord) {
		if r.GetOverhead() == nil && r.GetResources() == nil {
			return
		}
		config := proto.CloneOf(rec.Config) // whose readers hold no lock
		if config.Linux == nil {
			config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
		}
		if r.GetOverhead() != nil {
			config.Linux.Overhead = proto.CloneOf(r.Overhead)
		}
		if r.GetResources() != nil {
			config.Linux.Resources = proto.CloneOf(r.Resources)
		}
		rec.Config = config
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// ReopenContainerLog opens a running container's log anew after its rotation.
func (s *Server) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if _, err := s.pidOf(c); err != nil {
		return nil, err
	}
	client, err := c.sandbox.client()
	if err == nil {
		err = client.ReopenLog(ctx, c.id)
	}
	if err != nil {
		return nil, shimError(err)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
