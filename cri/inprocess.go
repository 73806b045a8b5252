package cri

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The adapters below give a server's methods the shape of a client's. They are
// written out, not reflected: a call costs a call.

type localRuntime struct {
	s runtimeapi.RuntimeServiceServer
}

type localImages struct{ s runtimeapi.ImageServiceServer }

// answer passes a unary call's result on, with the error as gRPC would show it.
func answer[T any](m *T, err error) (*T, error) {
	if err != nil {
		return nil, asStatus(err)
	}
	return m, nil
}

func (l localRuntime) Version(ctx context.Context, m *runtimeapi.VersionRequest, _ ...grpc.CallOption) (*runtimeapi.VersionResponse, error) {
	return answer(l.s.Version(ctx, m))
}

func (l localRuntime) RunPodSandbox(ctx context.Context, m *runtimeapi.RunPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
	return answer(l.s.RunPodSandbox(ctx, m))
}

func (l localRuntime) StopPodSandbox(ctx context.Context, m *runtimeapi.StopPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	return answer(l.s.StopPodSandbox(ctx, m))
}

func (l localRuntime) RemovePodSandbox(ctx context.Context, m *runtimeapi.RemovePodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	return answer(l.s.RemovePodSandbox(ctx, m))
}

func (l localRuntime) PodSandboxStatus(ctx context.Context, m *runtimeapi.PodSandboxStatusRequest, _ ...grpc.CallOption) (*runtimeapi.PodSandboxStatusResponse, error) {
	return answer(l.s.PodSandboxStatus(ctx, m))
}

func (l localRuntime) ListPodSandbox(ctx context.Context, m *runtimeapi.ListPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return answer(l.s.ListPodSandbox(ctx, m))
}

func (l localRuntime) StreamPodSandboxes(ctx context.Context, m *runtimeapi.StreamPodSandboxesRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.StreamPodSandboxesResponse], error) {
	return openStream(ctx, m, l.s.StreamPodSandboxes)
}

func (l localRuntime) CreateContainer(ctx context.Context, m *runtimeapi.CreateContainerRequest, _ ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error) {
	return answer(l.s.CreateContainer(ctx, m))
}

func (l localRuntime) StartContainer(ctx context.Context, m *runtimeapi.StartContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StartContainerResponse, error) {
	return answer(l.s.StartContainer(ctx, m))
}

func (l localRuntime) StopContainer(ctx context.Context, m *runtimeapi.StopContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	return answer(l.s.StopContainer(ctx, m))
}

func (l localRuntime) RemoveContainer(ctx context.Context, m *runtimeapi.RemoveContainerRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error) {
	return answer(l.s.RemoveContainer(ctx, m))
}

func (l localRuntime) ListContainers(ctx context.Context, m *runtimeapi.ListContainersRequest, _ ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return answer(l.s.ListContainers(ctx, m))
}

func (l localRuntime) StreamContainers(ctx context.Context, m *runtimeapi.StreamContainersRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.StreamContainersResponse], error) {
	return openStream(ctx, m, l.s.StreamContainers)
}

func (l localRuntime) ContainerStatus(ctx context.Context, m *runtimeapi.ContainerStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	return answer(l.s.ContainerStatus(ctx, m))
}

func (l localRuntime) UpdateContainerResources(ctx context.Context, m *runtimeapi.UpdateContainerResourcesRequest, _ ...grpc.CallOption) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return answer(l.s.UpdateContainerResources(ctx, m))
}

func (l localRuntime) ReopenContainerLog(ctx context.Context, m *runtimeapi.ReopenContainerLogRequest, _ ...grpc.CallOption) (*runtimeapi.ReopenContainerLogResponse, error) {
	return answer(l.s.ReopenContainerLog(ctx, m))
}

func (l localRuntime) ExecSync(ctx context.Context, m *runtimeapi.ExecSyncRequest, _ ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	return answer(l.s.ExecSync(ctx, m))
}

func (l localRuntime) Exec(ctx context.Context, m *runtimeapi.ExecRequest, _ ...grpc.CallOption) (*runtimeapi.ExecResponse, error) {
	return answer(l.s.Exec(ctx, m))
}

func (l localRuntime) Attach(ctx context.Context, m *runtimeapi.AttachRequest, _ ...grpc.CallOption) (*runtimeapi.AttachResponse, error) {
	return answer(l.s.Attach(ctx, m))
}

func (l localRuntime) PortForward(ctx context.Context, m *runtimeapi.PortForwardRequest, _ ...grpc.CallOption) (*runtimeapi.PortForwardResponse, error) {
	return answer(l.s.PortForward(ctx, m))
}

func (l localRuntime) ContainerStats(ctx context.Context, m *runtimeapi.ContainerStatsRequest, _ ...grpc.CallOption) (*runtimeapi.ContainerStatsResponse, error) {
	return answer(l.s.ContainerStats(ctx, m))
}

func (l localRuntime) ListContainerStats(ctx context.Context, m *runtimeapi.ListContainerStatsRequest, _ ...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error) {
	return answer(l.s.ListContainerStats(ctx, m))
}

func (l localRuntime) StreamContainerStats(ctx context.Context, m *runtimeapi.StreamContainerStatsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.StreamContainerStatsResponse], error) {
	return openStream(ctx, m, l.s.StreamContainerStats)
}

func (l localRuntime) PodSandboxStats(ctx context.Context, m *runtimeapi.PodSandboxStatsRequest, _ ...grpc.CallOption) (*runtimeapi.PodSandboxStatsResponse, error) {
	return answer(l.s.PodSandboxStats(ctx, m))
}

func (l localRuntime) ListPodSandboxStats(ctx context.Context, m *runtimeapi.ListPodSandboxStatsRequest, _ ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return answer(l.s.ListPodSandboxStats(ctx, m))
}

func (l localRuntime) StreamPodSandboxStats(ctx context.Context, m *runtimeapi.StreamPodSandboxStatsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.StreamPodSandboxStatsResponse], error) {
	return openStream(ctx, m, l.s.StreamPodSandboxStats)
}

func (l localRuntime) UpdateRuntimeConfig(ctx context.Context, m *runtimeapi.UpdateRuntimeConfigRequest, _ ...grpc.CallOption) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return answer(l.s.UpdateRuntimeConfig(ctx, m))
}

func (l localRuntime) Status(ctx context.Context, m *runtimeapi.StatusRequest, _ ...grpc.CallOption) (*runtimeapi.StatusResponse, error) {
	return answer(l.s.Status(ctx, m))
}

func (l localRuntime) CheckpointContainer(ctx context.Context, m *runtimeapi.CheckpointContainerRequest, _ ...grpc.CallOption) (*runtimeapi.CheckpointContainerResponse, error) {
	return answer(l.s.CheckpointContainer(ctx, m))
}

func (l localRuntime) CheckpointPod(ctx context.Context, m *runtimeapi.CheckpointPodRequest, _ ...grpc.CallOption) (*runtimeapi.CheckpointPodResponse, error) {
	return answer(l.s.CheckpointPod(ctx, m))
}

func (l localRuntime) RestorePod(ctx context.Context, m *runtimeapi.RestorePodRequest, _ ...grpc.CallOption) (*runtimeapi.RestorePodResponse, error) {
	return answer(l.s.RestorePod(ctx, m))
}

func (l localRuntime) GetContainerEvents(ctx context.Context, m *runtimeapi.GetEventsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse], error) {
	return openStream(ctx, m, l.s.GetContainerEvents)
}

func (l localRuntime) ListMetricDescriptors(ctx context.Context, m *runtimeapi.ListMetricDescriptorsRequest, _ ...grpc.CallOption) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return answer(l.s.ListMetricDescriptors(ctx, m))
}

func (l localRuntime) ListPodSandboxMetrics(ctx context.Context, m *runtimeapi.ListPodSandboxMetricsRequest, _ ...grpc.CallOption) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return answer(l.s.ListPodSandboxMetrics(ctx, m))
}

func (l localRuntime) StreamPodSandboxMetrics(ctx context.Context, m *runtimeapi.StreamPodSandboxMetricsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.StreamPodSandboxMetricsResponse], error) {
	return openStream(ctx, m, l.s.StreamPodSandboxMetrics)
}

func (l localRuntime) RuntimeConfig(ctx context.Context, m *runtimeapi.RuntimeConfigRequest, _ ...grpc.CallOption) (*runtimeapi.RuntimeConfigResponse, error) {
	return answer(l.s.RuntimeConfig(ctx, m))
}

func (l localRuntime) UpdatePodSandboxResources(ctx context.Context, m *runtimeapi.UpdatePodSandboxResourcesRequest, _ ...grpc.CallOption) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return answer(l.s.UpdatePodSandboxResources(ctx, m))
}

func (l localImages) ListImages(ctx context.Context, m *runtimeapi.ListImagesRequest, _ ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error) {
	return answer(l.s.ListImages(ctx, m))
}

func (l localImages) StreamImages(ctx context.Context, m *runtimeapi.StreamImagesRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.StreamImagesResponse], error) {
	return openStream(ctx, m, l.s.StreamImages)
}

func (l localImages) ImageStatus(ctx context.Context, m *runtimeapi.ImageStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ImageStatusResponse, error) {
	return answer(l.s.ImageStatus(ctx, m))
}

func (l localImages) PullImage(ctx context.Context, m *runtimeapi.PullImageRequest, _ ...grpc.CallOption) (*runtimeapi.PullImageResponse, error) {
	return answer(l.s.PullImage(ctx, m))
}

func (l localImages) RemoveImage(ctx context.Context, m *runtimeapi.RemoveImageRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveImageResponse, error) {
	return answer(l.s.RemoveImage(ctx, m))
}

func (l localImages) ImageFsInfo(ctx context.Context, m *runtimeapi.ImageFsInfoRequest, _ ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error) {
	return answer(l.s.ImageFsInfo(ctx, m))
}
