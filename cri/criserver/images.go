package criserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/image"
)

// imageError gives the image store's errors their gRPC codes.
func imageError(err error) error {
	switch {
	case errors.Is(err, image.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, image.ErrInvalid):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, image.ErrUnauthorized):
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return err
}

// imageRef is what pod status shows as the image that runs: a name by digest,
// if there is one.
func imageRef(im *image.Image) string {
	if len(im.Digests) > 0 {
		return im.Digests[0]
	}
	return im.ID
}

func criImage(im *image.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: im.ID, RepoTags: im.Tags, RepoDigests: im.Digests, Size: uint64(im.Size), Pinned: im.Pinned,
		Spec: &runtimeapi.ImageSpec{Image: im.ID},
	}
	// The kubelet judges runAsNonRoot by these: a number that is none of
	// checkID's stays a name, which it refuses.
	who, _, _ := strings.Cut(im.Config.Config.User, ":")
	if who == "" {
		who = "0"
	}
	if uid, err := strconv.ParseUint(who, 10, 31); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: int64(uid)}
	} else {
		out.Username = who
	}
	return out
}

// ListImages lists images.
func (s *Server) ListImages(ctx context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.listImages(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: images}, nil
}

// StreamImages is ListImages in pieces.
func (s *Server) StreamImages(r *runtimeapi.StreamImagesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	images, err := s.listImages(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return inPieces(images, func(p []*runtimeapi.Image) error {
		return out.Send(&runtimeapi.StreamImagesResponse{Images: p})
	})
}

func (s *Server) listImages(ctx context.Context, f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if ref := f.GetImage().GetImage(); ref != "" {
		im, err := s.images.Get(ctx, ref)
		if errors.Is(err, image.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, imageError(err)
		}
		return []*runtimeapi.Image{criImage(im)}, nil
	}
	images, err := s.images.List(ctx)
	if err != nil {
		return nil, imageError(err)
	}
	all := make([]*runtimeapi.Image, 0, len(images))
	for _, im := range images {
		all = append(all, criImage(im))
	}
	return all, nil
}

// ImageStatus tells about one image; that there is none is no error.
func (s *Server) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	im, err := s.images.Get(ctx, r.GetImage().GetImage())
	if errors.Is(err, image.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, imageError(err)
	}
	out := &runtimeapi.ImageStatusResponse{Image: criImage(im)}
	if r.GetVerbose() {
		raw, err := json.Marshal(map[string]any{"chainID": im.Layers, "imageSpec": im.Config})
		if err != nil {
			return nil, err
		}
		out.Info = map[string]string{"info": string(raw)}
	}
	return out, nil
}

// PullImage pulls an image. The answer is its ID, as containers name it.
func (s *Server) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if _, err := s.handlerOf(r.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	a := r.GetAuth()
	im, err := s.images.Pull(ctx, r.GetImage().GetImage(), image.PullOptions{Auth: image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Basic: a.GetAuth(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}, Later: true})
	select { // also after a pull that was broken off: layers are left of it
	case s.pulled <- struct{}{}:
	default: // it is due already
	}
	if err != nil {
		return nil, imageError(err)
	}
	s.log.Info("image pulled", "image", r.GetImage().GetImage(), "id", im.ID)
	return &runtimeapi.PullImageResponse{ImageRef: im.ID}, nil
}

// settle makes images durable that were pulled, also by a server before this one: pods that wait for an image need not wait for the disk.
func (s *Server) settle(ctx context.Context) {
	for {
		if err := s.images.Settle(); err != nil {
			s.log.Error("pulled images are not durable", "err", err)
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-s.pulled:
		case <-ctx.Done(): // and once more
		}
	}
}

// RemoveImage removes an image with all its names. It is no error that there is
// none.
func (s *Server) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	err := s.images.Remove(ctx, r.GetImage().GetImage())
	if err != nil && !errors.Is(err, image.ErrNotFound) {
		return nil, imageError(fmt.Errorf("remove image: %w", err))
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells what images take. Containers' writable layers are on the
// same file system.
func (s *Server) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	u, err := s.images.Usage()
	if err != nil {
		return nil, err
	}
	usage := []*runtimeapi.FilesystemUsage{s.filesystemUsage(u)}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: usage, ContainerFilesystems: usage}, nil
}

func (s *Server) filesystemUsage(u image.Usage) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  now(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.images.Dir()},
		UsedBytes:  &runtimeapi.UInt64Value{Value: uint64(u.Bytes)},
		InodesUsed: &runtimeapi.UInt64Value{Value: uint64(u.Inodes)},
	}
}
