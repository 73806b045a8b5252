package criserver

import (
	"context"
	"encoding/json"
	"slices"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PodSandboxStatus tells about one sandbox and its containers.
func (s *Server) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	rec := sb.record()
	out := &runtimeapi.PodSandboxStatusResponse{
		Status: rec.status(), ContainersStatuses: s.statusesOf(sb.id), Timestamp: now(),
	}
	if r.GetVerbose() {
		info := map[string]any{"id": rec.ID, "netNS": rec.NetNS, "config": rec.Config}
		if client, err := sb.client(); err == nil {
			info["shimPid"] = client.Pid()
		}
		if out.Info, err = verbose(info); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// verbose puts details in the form that crictl shows.
func verbose(info map[string]any) (map[string]string, error) {
	raw, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(raw)}, nil
}

func (r *sandboxRecord) status() *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{
		Id: r.ID, Metadata: r.Config.GetMetadata(), State: r.state(), CreatedAt: r.Created,
		Labels: r.Config.GetLabels(), Annotations: r.Config.GetAnnotations(), RuntimeHandler: r.Handler,
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: namespaceOptions(r.Config)}},
	}
	if r.Stopped || r.Dead {
		return st // its addresses may be another's by now
	}
	for i, ip := range r.IPs {
		if i == 0 {
			st.Network.Ip = ip
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
	}
	return st
}

// statusesOf are a sandbox's containers, the oldest first.
func (s *Server) statusesOf(sandbox string) []*runtimeapi.ContainerStatus {
	var all []*runtimeapi.ContainerStatus
	for _, c := range s.containersOf(sandbox) {
		rec := c.record()
		all = append(all, rec.status())
	}
	slices.SortFunc(all, func(a, b *runtimeapi.ContainerStatus) int { return int(a.CreatedAt - b.CreatedAt) })
	return all
}

// ListPodSandbox lists sandboxes.
func (s *Server) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.listSandboxes(r.GetFilter())}, nil
}

// StreamPodSandboxes is ListPodSandbox in pieces.
func (s *Server) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return inPieces(s.listSandboxes(r.GetFilter()), func(p []*runtimeapi.PodSandbox) error {
		return out.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: p})
	})
}

// piece is the number of items in one message of a stream: well below a
// message's size limit with long labels and annotations.
const piece = 100

func inPieces[T any](all []T, send func([]T) error) error {
	for p := range slices.Chunk(all, piece) {
		if err := send(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) listSandboxes(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	var all []*runtimeapi.PodSandbox
	for _, sb := range s.matchingSandboxes(f.GetId(), f.GetLabelSelector()) {
		rec := sb.record()
		if f.GetState() != nil && f.State.State != rec.state() {
			continue
		}
		all = append(all, &runtimeapi.PodSandbox{
			Id: rec.ID, Metadata: rec.Config.GetMetadata(), State: rec.state(), CreatedAt: rec.Created,
			Labels: rec.Config.GetLabels(), Annotations: rec.Config.GetAnnotations(), RuntimeHandler: rec.Handler,
		})
	}
	return all
}

// matchingSandboxes are those with the ID and the labels, the newest first.
func (s *Server) matchingSandboxes(id string, labels map[string]string) []*sandbox {
	s.mu.Lock()
	var all []*sandbox
	if id != "" {
		if sb, err := find(s.sandboxes, "sandbox", id); err == nil {
			all = append(all, sb)
		}
	} else {
		for _, sb := range s.sandboxes {
			all = append(all, sb)
		}
	}
	s.mu.Unlock()
	all = slices.DeleteFunc(all, func(sb *sandbox) bool { return !matches(sb.config.GetLabels(), labels) })
	slices.SortFunc(all, func(a, b *sandbox) int { return int(b.created - a.created) })
	return all
}

func matches(labels, selector map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
