package csitest

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

// node calls a Driver as its clients do, in the caller's goroutine: the bubbles of testing/synctest know no sockets.
type node struct{ d *Driver }

func (n node) NodeStageVolume(ctx context.Context, r *spec.NodeStageVolumeRequest, _ ...grpc.CallOption) (*spec.NodeStageVolumeResponse, error) {
	return n.d.NodeStageVolume(ctx, r)
}

func (n node) NodeUnstageVolume(ctx context.Context, r *spec.NodeUnstageVolumeRequest, _ ...grpc.CallOption) (*spec.NodeUnstageVolumeResponse, error) {
	return n.d.NodeUnstageVolume(ctx, r)
}

func (n node) NodePublishVolume(ctx context.Context, r *spec.NodePublishVolumeRequest, _ ...grpc.CallOption) (*spec.NodePublishVolumeResponse, error) {
	return n.d.NodePublishVolume(ctx, r)
}

func (n node) NodeUnpublishVolume(ctx context.Context, r *spec.NodeUnpublishVolumeRequest, _ ...grpc.CallOption) (*spec.NodeUnpublishVolumeResponse, error) {
	return n.d.NodeUnpublishVolume(ctx, r)
}

func (n node) NodeGetVolumeStats(ctx context.Context, r *spec.NodeGetVolumeStatsRequest, _ ...grpc.CallOption) (*spec.NodeGetVolumeStatsResponse, error) {
	return n.d.NodeGetVolumeStats(ctx, r)
}

func (n node) NodeGetVolumeHealth(ctx context.Context, r *spec.NodeGetVolumeHealthRequest, _ ...grpc.CallOption) (*spec.NodeGetVolumeHealthResponse, error) {
	return n.d.NodeGetVolumeHealth(ctx, r)
}

func (n node) NodeGetStorageHealth(ctx context.Context, r *spec.NodeGetStorageHealthRequest, _ ...grpc.CallOption) (*spec.NodeGetStorageHealthResponse, error) {
	return n.d.NodeGetStorageHealth(ctx, r)
}

func (n node) NodeExpandVolume(ctx context.Context, r *spec.NodeExpandVolumeRequest, _ ...grpc.CallOption) (*spec.NodeExpandVolumeResponse, error) {
	return n.d.NodeExpandVolume(ctx, r)
}

func (n node) NodeGetCapabilities(ctx context.Context, r *spec.NodeGetCapabilitiesRequest, _ ...grpc.CallOption) (*spec.NodeGetCapabilitiesResponse, error) {
	return n.d.NodeGetCapabilities(ctx, r)
}

func (n node) NodeGetInfo(ctx context.Context, r *spec.NodeGetInfoRequest, _ ...grpc.CallOption) (*spec.NodeGetInfoResponse, error) {
	return n.d.NodeGetInfo(ctx, r)
}
