package criserver

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	runtimeName = "yare"
	apiVersion  = "v1"
	// handlerName may be named by a RuntimeClass; it is the same as none.
	handlerName = "yare"
)

// Version says who this is.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		// Version is the one of the kubelet's interface, which other runtimes tell too.
		Version: "0.1.0", RuntimeName: runtimeName, RuntimeVersion: cmp.Or(s.cfg.Version, "0.0.0"), RuntimeApiVersion: apiVersion,
	}, nil
}

// Status says whether pods can run, and what they can ask for.
func (s *Server) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	ready := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.network.Status(ctx); err != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	features := &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: s.facts.Users}
	handlers := []*runtimeapi.RuntimeHandler{{Name: "", Features: features}, {Name: handlerName, Features: features}}
	for _, name := range slices.Sorted(maps.Keys(s.handlers)) {
		handlers = append(handlers, &runtimeapi.RuntimeHandler{Name: name, Features: s.handlers[name].features})
	}
	out := &runtimeapi.StatusResponse{
		Status:          &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{ready, network}},
		RuntimeHandlers: handlers,
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if r.GetVerbose() {
		info, err := verbose(map[string]any{"config": s.cfg, "cgroupUnified": s.facts.Unified})
		if err != nil {
			return nil, err
		}
		out.Info = info
	}
	return out, nil
}

// RuntimeConfig tells the kubelet how to name cgroups.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{
		Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS},
	}, nil
}

// UpdateRuntimeConfig tells the node's pod range. The network has a range of its
// own configuration, so there is nothing to do.
func (s *Server) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// CheckpointContainer is refused: restoring a process from an image that anyone
// could have written gives its author the host.
func (s *Server) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, status.Error(codes.Unimplemented, "checkpoint is left out on purpose: a checkpoint image would be trusted with kernel state")
}

// CheckpointPod is refused for the same reason.
func (s *Server) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, status.Error(codes.Unimplemented, "checkpoint is left out on purpose: a checkpoint image would be trusted with kernel state")
}

// RestorePod is refused for the same reason.
func (s *Server) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, status.Error(codes.Unimplemented, "restore is left out on purpose: a checkpoint image would be trusted with kernel state")
}
