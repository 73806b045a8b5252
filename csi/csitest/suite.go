package csitest

import (
	"os"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/yare-dev/yare/csi"
	"github.com/yare-dev/yare/linux"
)

// Volume is a volume that a driver under test has for the suite.
type Volume struct {
	Handle  string
	Context map[string]string // of the volume and of its publication to the node
	Publish map[string]string
}

// Suite checks that a driver on this node does what the kubelet relies on, with a volume with a file system: what is published is one file
// system for all who have it, every call may be repeated, undoing what was never done is no failure. It needs root.
func Suite(t *testing.T, n csi.Node, v Volume) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	ctx, dir := t.Context(), t.TempDir()
	can, err := n.Capabilities(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := n.Info(ctx); err != nil || info.NodeId == "" {
		t.Fatalf("it does not say what this node is called: %v %v", info, err)
	}
	stages := can[spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME]
	writer := &spec.VolumeCapability{AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}},
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	staging := ""
	twice := func(what string, f func() error) {
		t.Helper()
		for range 2 {
			if err := f(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	if stages {
		staging = filepath.Join(dir, "staging")
		if err := os.Mkdir(staging, 0o750); err != nil {
			t.Fatal(err)
		}
		twice("Stage", func() error {
			return n.Stage(ctx, &spec.NodeStageVolumeRequest{VolumeId: v.Handle, StagingTargetPath: staging, VolumeCapability: writer,
				VolumeContext: v.Context, PublishContext: v.Publish})
		})
	}
	targets := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for _, target := range targets {
		twice("Publish", func() error {
			return n.Publish(ctx, &spec.NodePublishVolumeRequest{VolumeId: v.Handle, StagingTargetPath: staging, TargetPath: target,
				VolumeCapability: writer, VolumeContext: v.Context, PublishContext: v.Publish})
		})
	}
	if err := os.WriteFile(filepath.Join(targets[0], "f"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(targets[1], "f")); string(b) != "x" {
		t.Error("two targets are not one volume:", err)
	}
	if can[spec.NodeServiceCapability_RPC_GET_VOLUME_STATS] {
		if _, err := n.Stats(ctx, &spec.NodeGetVolumeStatsRequest{VolumeId: v.Handle, VolumePath: targets[0], StagingTargetPath: staging}); err != nil {
			t.Error(err)
		}
	}
	for _, target := range targets {
		twice("Unpublish", func() error {
			return n.Unpublish(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: v.Handle, TargetPath: target})
		})
	}
	if stages {
		twice("Unstage", func() error {
			return n.Unstage(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: v.Handle, StagingTargetPath: staging})
		})
	}
	for _, path := range append(targets, staging) {
		if mounted, err := linux.Mounted(path); mounted || err != nil {
			t.Error("still mounted:", path, err)
		}
	}
	if err := n.Publish(ctx, &spec.NodePublishVolumeRequest{}); csi.Code(err) == codes.OK {
		t.Error("nothing was published, and it went well")
	}
}
