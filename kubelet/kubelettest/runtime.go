package kubelettest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
)

// Runtime is a CRI server without containers: it keeps the books. Its state survives a kubelet, as a runtime's does.
type Runtime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	// OnExec answers ExecSync; nil succeeds.
	OnExec func(container string, cmd []string) (exit int32, output string, err error)
	// Pull answers PullImage before the image is there; nil succeeds.
	Pull func(image string) error
	// Linger is how long a container takes to end after its stop signal, by name.
	Linger map[string]time.Duration
	// RunSandbox and Create may refuse.
	RunSandbox func(*runtimeapi.PodSandboxConfig) error
	Create     func(*runtimeapi.ContainerConfig) error
	NotReady   bool
	// Memory is what each container uses, in bytes; Memories what one does, and Layer what it has written to its root file system, by name.
	Memory   uint64
	Memories map[string]uint64
	Layer    map[string]uint64
	// Resized is what was told of pods' new resources.
	Resized []*runtimeapi.UpdatePodSandboxResourcesRequest
	// Removed is told of an image that was removed.
	Removed func(image string)
	// Sessions prepares those of Exec, Attach and PortForward.
	Sessions streaming.Server

	mu         sync.Mutex
	count      int
	sandboxes  map[string]*runtimeapi.PodSandboxStatus
	containers map[string]*Container
	images     map[string]*runtimeapi.Image
	watchers   map[chan *runtimeapi.ContainerEventResponse]bool
	calls      []string
}

// Container is one of a Runtime's containers.
type Container struct {
	Sandbox string
	Config  *runtimeapi.ContainerConfig
	status  *runtimeapi.ContainerStatus
}

// NewRuntime returns a Runtime that has the images.
func NewRuntime(images ...string) *Runtime {
	r := &Runtime{sandboxes: map[string]*runtimeapi.PodSandboxStatus{}, containers: map[string]*Container{},
		images: map[string]*runtimeapi.Image{}, watchers: map[chan *runtimeapi.ContainerEventResponse]bool{}}
	for _, i := range images {
		r.images[i] = image(i)
	}
	return r
}

func image(name string) *runtimeapi.Image {
	return &runtimeapi.Image{Id: "sha256:" + name, RepoTags: []string{name}, Size: 1 << 20, Uid: &runtimeapi.Int64Value{Value: 0}}
}

// Calls returns what was asked so far, "verb name", and forgets it.
func (r *Runtime) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

func (r *Runtime) note(format string, args ...any) {
	r.calls = append(r.calls, fmt.Sprintf(format, args...))
}

// Running returns the configurations of the running containers, by name.
func (r *Runtime) Running() map[string]*runtimeapi.ContainerConfig {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]*runtimeapi.ContainerConfig{}
	for _, c := range r.containers {
		if c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out[c.Config.Metadata.Name] = c.Config
		}
	}
	return out
}

// IDs returns the IDs of the running containers, by name.
func (r *Runtime) IDs() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]string{}
	for id, c := range r.containers {
		if c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out[c.Config.Metadata.Name] = id
		}
	}
	return out
}

// Left returns the IDs of everything that the runtime still keeps.
func (r *Runtime) Left() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(slices.Sorted(maps.Keys(r.sandboxes)), slices.Sorted(maps.Keys(r.containers))...)
}

// Exit ends the running container of the name.
func (r *Runtime) Exit(name string, code int32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.Config.Metadata.Name == name && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.exit(c, code)
		}
	}
}

// LoseSandboxes makes all sandboxes and their containers end, as a crash of the host would.
func (r *Runtime) LoseSandboxes() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.exit(c, 137)
		}
	}
	for id, s := range r.sandboxes {
		r.sandboxes[id] = sandboxIn(s, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	}
}

func sandboxIn(s *runtimeapi.PodSandboxStatus, state runtimeapi.PodSandboxState) *runtimeapi.PodSandboxStatus {
	return &runtimeapi.PodSandboxStatus{Id: s.Id, Metadata: s.Metadata, State: state, CreatedAt: s.CreatedAt, Network: s.Network, Labels: s.Labels, RuntimeHandler: s.RuntimeHandler}
}

func (r *Runtime) exit(c *Container, code int32) {
	s := c.copy()
	s.State, s.ExitCode, s.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, code, time.Now().UnixNano()
	c.status = s
	r.tell(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// copy returns a status that may be changed: those given out may not.
func (c *Container) copy() *runtimeapi.ContainerStatus {
	s := c.status
	return &runtimeapi.ContainerStatus{Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, StartedAt: s.StartedAt,
		Image: s.Image, ImageRef: s.ImageRef, Labels: s.Labels, Annotations: s.Annotations, LogPath: s.LogPath, Mounts: s.Mounts, Resources: s.Resources}
}

func (r *Runtime) tell(c *Container, t runtimeapi.ContainerEventType) {
	e := &runtimeapi.ContainerEventResponse{ContainerId: c.status.Id, ContainerEventType: t, CreatedAt: time.Now().UnixNano(), PodSandboxStatus: r.sandboxes[c.Sandbox]}
	for ch := range r.watchers {
		ch <- e
	}
}

func (r *Runtime) id(kind string) string {
	r.count++
	return fmt.Sprintf("%s-%d", kind, r.count)
}

// GetContainerEvents implements the CRI.
func (r *Runtime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	ch := make(chan *runtimeapi.ContainerEventResponse, 10000)
	r.mu.Lock()
	r.watchers[ch] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.watchers, ch)
		r.mu.Unlock()
	}()
	for {
		select {
		case e := <-ch:
			if err := out.Send(e); err != nil {
				return err
			}
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

// Version implements the CRI.
func (r *Runtime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "books", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

// Status implements the CRI.
func (r *Runtime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: !r.NotReady, Message: "no pod CIDR"}}}}, nil
}

// UpdateRuntimeConfig implements the CRI: a pod CIDR makes the network ready.
func (r *Runtime) UpdateRuntimeConfig(_ context.Context, q *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.NotReady = r.NotReady && q.RuntimeConfig.GetNetworkConfig().GetPodCidr() == ""
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// RunPodSandbox implements the CRI.
func (r *Runtime) RunPodSandbox(_ context.Context, q *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if r.RunSandbox != nil {
		if err := r.RunSandbox(q.Config); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.id("sandbox")
	r.note("run sandbox %s %d", q.Config.Metadata.Name, q.Config.Metadata.Attempt)
	r.sandboxes[id] = &runtimeapi.PodSandboxStatus{Id: id, Metadata: q.Config.Metadata, State: runtimeapi.PodSandboxState_SANDBOX_READY,
		CreatedAt: time.Now().UnixNano(), Labels: q.Config.Labels, RuntimeHandler: q.RuntimeHandler, Network: &runtimeapi.PodSandboxNetworkStatus{Ip: fmt.Sprintf("10.0.0.%d", r.count)}}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox implements the CRI.
func (r *Runtime) StopPodSandbox(_ context.Context, q *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[q.PodSandboxId]
	if s == nil || s.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	for _, c := range r.containers {
		if c.Sandbox == s.Id && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.exit(c, 137)
		}
	}
	r.note("stop sandbox %s", s.Metadata.Name)
	r.sandboxes[s.Id] = sandboxIn(s, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox implements the CRI.
func (r *Runtime) RemovePodSandbox(_ context.Context, q *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sandboxes[q.PodSandboxId]; s != nil {
		r.note("remove sandbox %s", s.Metadata.Name)
	}
	delete(r.sandboxes, q.PodSandboxId)
	for id, c := range r.containers {
		if c.Sandbox == q.PodSandboxId {
			delete(r.containers, id)
		}
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func match(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// ListPodSandbox implements the CRI.
func (r *Runtime) ListPodSandbox(_ context.Context, q *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListPodSandboxResponse{}
	for _, id := range slices.Sorted(maps.Keys(r.sandboxes)) {
		if s := r.sandboxes[id]; match(s.Labels, q.Filter.GetLabelSelector()) {
			out.Items = append(out.Items, &runtimeapi.PodSandbox{Id: id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, Labels: s.Labels})
		}
	}
	return out, nil
}

// PodSandboxStatus implements the CRI.
func (r *Runtime) PodSandboxStatus(_ context.Context, q *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[q.PodSandboxId]
	if s == nil {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: s}, nil
}

// CreateContainer implements the CRI.
func (r *Runtime) CreateContainer(_ context.Context, q *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if r.Create != nil {
		if err := r.Create(q.Config); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[q.PodSandboxId]
	if s == nil || s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, status.Error(codes.FailedPrecondition, "the sandbox is not ready")
	}
	id := r.id("container")
	r.note("create %s %d", q.Config.Metadata.Name, q.Config.Metadata.Attempt)
	c := &Container{Sandbox: q.PodSandboxId, Config: q.Config}
	c.status = &runtimeapi.ContainerStatus{Id: id, Metadata: q.Config.Metadata, State: runtimeapi.ContainerState_CONTAINER_CREATED,
		CreatedAt: time.Now().UnixNano(), Image: q.Config.Image, ImageRef: q.Config.Image.Image, Labels: q.Config.Labels,
		Annotations: q.Config.Annotations, LogPath: q.SandboxConfig.GetLogDirectory() + "/" + q.Config.LogPath, Mounts: q.Config.Mounts,
		Resources: &runtimeapi.ContainerResources{Linux: q.Config.GetLinux().GetResources()}}
	r.containers[id] = c
	r.tell(c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (r *Runtime) find(id string) (*Container, error) {
	if c := r.containers[id]; c != nil {
		return c, nil
	}
	return nil, status.Errorf(codes.NotFound, "no container %s", id)
}

// StartContainer implements the CRI.
func (r *Runtime) StartContainer(_ context.Context, q *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.find(q.ContainerId)
	if err != nil {
		return nil, err
	}
	r.note("start %s", c.Config.Metadata.Name)
	s := c.copy()
	s.State, s.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	c.status = s
	r.tell(c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer implements the CRI: the container ends with 0 when it lingers less than the timeout, else with 137.
func (r *Runtime) StopContainer(ctx context.Context, q *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	r.mu.Lock()
	c, err := r.find(q.ContainerId)
	if err != nil {
		r.mu.Unlock()
		return nil, err
	}
	name := c.Config.Metadata.Name
	r.note("stop %s %d", name, q.Timeout)
	linger, code := r.Linger[name], int32(0)
	r.mu.Unlock()
	if most := time.Duration(q.Timeout) * time.Second; linger > most || q.Timeout == 0 {
		linger, code = most, 137
	}
	select {
	case <-time.After(linger):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		r.exit(c, code)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer implements the CRI.
func (r *Runtime) RemoveContainer(_ context.Context, q *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, q.ContainerId)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers implements the CRI.
func (r *Runtime) ListContainers(_ context.Context, q *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for _, id := range slices.Sorted(maps.Keys(r.containers)) {
		c := r.containers[id]
		if s := c.status; match(s.Labels, q.Filter.GetLabelSelector()) && q.Filter.GetPodSandboxId() != "" == (q.Filter.GetPodSandboxId() == c.Sandbox) &&
			(q.Filter.GetState() == nil || q.Filter.State.State == s.State) {
			out.Containers = append(out.Containers, &runtimeapi.Container{Id: id, PodSandboxId: c.Sandbox, Metadata: s.Metadata,
				Image: s.Image, ImageRef: s.ImageRef, State: s.State, CreatedAt: s.CreatedAt, Labels: s.Labels, Annotations: s.Annotations})
		}
	}
	return out, nil
}

// ContainerStatus implements the CRI.
func (r *Runtime) ContainerStatus(_ context.Context, q *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.find(q.ContainerId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatusResponse{Status: c.status}, nil
}

// UpdateContainerResources implements the CRI.
func (r *Runtime) UpdateContainerResources(_ context.Context, q *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.find(q.ContainerId)
	if err != nil {
		return nil, err
	}
	r.note("update %s %d %d %d", c.Config.Metadata.Name, q.Linux.CpuShares, q.Linux.CpuQuota, q.Linux.MemoryLimitInBytes)
	s := c.copy()
	s.Resources = &runtimeapi.ContainerResources{Linux: q.Linux}
	c.status = s
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// UpdatePodSandboxResources implements the CRI.
func (r *Runtime) UpdatePodSandboxResources(_ context.Context, q *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sandboxes[q.PodSandboxId] == nil {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	r.Resized = append(r.Resized, q)
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// ContainerStats implements the CRI: a container uses Memory bytes, and Layer's.
func (r *Runtime) ContainerStats(_ context.Context, q *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.find(q.ContainerId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: r.stats(c)}, nil
}

// Use sets Memory while the runtime is asked for it.
func (r *Runtime) Use(memory uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Memory = memory
}

// stats are a container's. r.mu is held.
func (r *Runtime) stats(c *Container) *runtimeapi.ContainerStats {
	name := c.Config.Metadata.Name
	memory, ok := r.Memories[name]
	if !ok {
		memory = r.Memory
	}
	n := func(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
	return &runtimeapi.ContainerStats{
		Attributes:    &runtimeapi.ContainerAttributes{Id: c.status.Id, Metadata: c.Config.Metadata, Labels: c.Config.Labels},
		WritableLayer: &runtimeapi.FilesystemUsage{UsedBytes: n(r.Layer[name]), InodesUsed: n(1)},
		Memory:        &runtimeapi.MemoryUsage{UsageBytes: n(memory), WorkingSetBytes: n(memory)}}
}

// ListPodSandboxStats implements the CRI: a pod uses what its running containers use, a process each.
func (r *Runtime) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, id := range slices.Sorted(maps.Keys(r.sandboxes)) {
		s := r.sandboxes[id]
		if s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		linux := &runtimeapi.LinuxPodSandboxStats{}
		for _, c := range r.containers {
			if c.Sandbox == id && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				linux.Containers = append(linux.Containers, r.stats(c))
			}
		}
		linux.Process = &runtimeapi.ProcessUsage{ProcessCount: &runtimeapi.UInt64Value{Value: uint64(len(linux.Containers))}}
		out.Stats = append(out.Stats, &runtimeapi.PodSandboxStats{Linux: linux,
			Attributes: &runtimeapi.PodSandboxAttributes{Id: id, Metadata: s.Metadata, Labels: s.Labels}})
	}
	return out, nil
}

// PodSandboxStats implements the CRI: a pod uses the memory that its running containers use.
func (r *Runtime) PodSandboxStats(_ context.Context, q *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := &runtimeapi.UInt64Value{}
	for _, c := range r.containers {
		if c.Sandbox == q.PodSandboxId && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			sum.Value += r.stats(c).Memory.UsageBytes.Value
		}
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: &runtimeapi.PodSandboxStats{
		Linux: &runtimeapi.LinuxPodSandboxStats{Memory: &runtimeapi.MemoryUsage{UsageBytes: sum}}}}, nil
}

// ExecSync implements the CRI.
func (r *Runtime) ExecSync(_ context.Context, q *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	r.mu.Lock()
	c, err := r.find(q.ContainerId)
	if err == nil {
		r.note("exec %s %s", c.Config.Metadata.Name, strings.Join(q.Cmd, " "))
	}
	r.mu.Unlock()
	if err != nil || r.OnExec == nil {
		return &runtimeapi.ExecSyncResponse{}, err
	}
	code, out, err := r.OnExec(c.Config.Metadata.Name, q.Cmd)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{ExitCode: code, Stdout: []byte(out)}, nil
}

// Exec implements the CRI.
func (r *Runtime) Exec(_ context.Context, q *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return r.Sessions.GetExec(q)
}

// Attach implements the CRI.
func (r *Runtime) Attach(_ context.Context, q *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return r.Sessions.GetAttach(q)
}

// PortForward implements the CRI.
func (r *Runtime) PortForward(_ context.Context, q *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return r.Sessions.GetPortForward(q)
}

// ImageStatus implements the CRI.
func (r *Runtime) ImageStatus(_ context.Context, q *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.ImageStatusResponse{Image: r.images[q.Image.Image]}, nil
}

// ListImages implements the CRI.
func (r *Runtime) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListImagesResponse{}
	for _, n := range slices.Sorted(maps.Keys(r.images)) {
		out.Images = append(out.Images, r.images[n])
	}
	return out, nil
}

// PullImage implements the CRI.
func (r *Runtime) PullImage(_ context.Context, q *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	r.mu.Lock()
	r.note("pull %s %s", q.Image.Image, q.Auth.GetUsername())
	r.mu.Unlock()
	if r.Pull != nil {
		if err := r.Pull(q.Image.Image); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[q.Image.Image] = image(q.Image.Image)
	return &runtimeapi.PullImageResponse{ImageRef: r.images[q.Image.Image].Id}, nil
}

// RemoveImage implements the CRI.
func (r *Runtime) RemoveImage(_ context.Context, q *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if r.Removed != nil {
		defer r.Removed(q.Image.Image)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note("remove image %s", q.Image.Image)
	for n, i := range r.images {
		if n == q.Image.Image || i.Id == q.Image.Image {
			delete(r.images, n)
		}
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo implements the CRI.
func (r *Runtime) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}
