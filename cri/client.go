package cri

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage bounds one gRPC message in bytes, as upstream's kubelet does: a
// full node's container list outgrows gRPC's 4 MiB.
const maxMessage = 16 << 20

// Client is what the kubelet holds. Both fields are the CRI v1 gRPC client
// interfaces; a Client of InProcess calls the server's methods directly
// (pointers are passed, nothing is serialised).
type Client struct {
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient

	close func() error
}

// Server is both CRI services in one value, as criserver implements it.
type Server interface {
	runtimeapi.RuntimeServiceServer
	runtimeapi.ImageServiceServer
}

// Dial connects to the runtime that serves CRI v1 at endpoint, an absolute
// path of a unix socket with or without "unix://". It waits, bounded by ctx,
// until the runtime answers Version. The caller closes the Client.
func Dial(ctx context.Context, endpoint string) (*Client, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("dial runtime %q: the endpoint must be an absolute path of a unix socket", endpoint)
	}
	conn, err := grpc.NewClient("unix://"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("dial runtime %q: %w", endpoint, err)
	}
	c := &Client{
		Runtime: runtimeapi.NewRuntimeServiceClient(conn),
		Images:  runtimeapi.NewImageServiceClient(conn),
		close:   conn.Close,
	}
	if _, err := c.Runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask runtime %q for its version: %w", endpoint, err)
	}
	return c, nil
}

// InProcess returns a Client that calls s in the caller's goroutine.
func InProcess(s Server) *Client {
	return &Client{Runtime: localRuntime{s}, Images: localImages{s}}
}

// Close releases the connection of a Client made by Dial.
func (c *Client) Close() error {
	if c.close == nil {
		return nil
	}
	return c.close()
}

// Code is the gRPC code of an error of a Client: codes.OK for nil, and
// codes.DeadlineExceeded or codes.Canceled for a context's errors.
func Code(err error) codes.Code {
	return status.Code(asStatus(err))
}

// asStatus gives err the form that a gRPC client would see.
func asStatus(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return status.FromContextError(err).Err()
}
