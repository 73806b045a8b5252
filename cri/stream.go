package cri

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"google.golang.org/grpc/codes"
)

// pipe carries one server stream of a call in process.
//
// The server's goroutine sends, the caller's receives. done is closed, after
// err is set, when the server's method has returned; everything sent before is
// received before that end is reported.
type pipe[T any] struct {
	ctx  context.Context
	msgs chan *T
	done chan struct{}
	err  error
}

// openStream runs serve in a goroutine that ends with ctx and returns the
// receiving end. As with gRPC, the caller reads to the end or cancels ctx.
func openStream[Q, T any](ctx context.Context, q *Q, serve func(*Q, grpc.ServerStreamingServer[T]) error) (grpc.ServerStreamingClient[T], error) {
	p := &pipe[T]{ctx: ctx, msgs: make(chan *T), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = asStatus(serve(q, sender[T]{pipe: p}))
	}()
	return receiver[T]{pipe: p}, nil
}

// sender is the server's end of a pipe.
type sender[T any] struct {
	grpc.ServerStream
	pipe *pipe[T]
}

func (s sender[T]) Context() context.Context     { return s.pipe.ctx }
func (s sender[T]) SetHeader(metadata.MD) error  { return nil }
func (s sender[T]) SendHeader(metadata.MD) error { return nil }
func (s sender[T]) SetTrailer(metadata.MD)       {}
func (s sender[T]) RecvMsg(any) error            { return io.EOF }
func (s sender[T]) SendMsg(m any) error          { return s.sendAny(m) }
func (s sender[T]) Send(m *T) error {
	select {
	case s.pipe.msgs <- m:
		return nil
	case <-s.pipe.ctx.Done():
		return asStatus(s.pipe.ctx.Err())
	}
}

func (s sender[T]) sendAny(m any) error {
	t, ok := m.(*T)
	if !ok {
		return status.Errorf(codes.Internal, "send a %T on a stream of %T", m, t)
	}
	return s.Send(t)
}

// receiver is the caller's end of a pipe.
type receiver[T any] struct {
	grpc.ClientStream
	pipe *pipe[T]
}

func (r receiver[T]) Context() context.Context     { return r.pipe.ctx }
func (r receiver[T]) Header() (metadata.MD, error) { return nil, nil }
func (r receiver[T]) Trailer() metadata.MD         { return nil }
func (r receiver[T]) CloseSend() error             { return nil }
func (r receiver[T]) SendMsg(any) error {
	return status.Error(codes.Internal, "send on a stream that only the server sends on")
}
func (r receiver[T]) RecvMsg(any) error {
	return status.Error(codes.Unimplemented, "receive into a message: use Recv, which passes the server's own")
}

func (r receiver[T]) Recv() (*T, error) {
	select {
	case m := <-r.pipe.msgs:
		return m, nil
	case <-r.pipe.done:
		if r.pipe.err != nil {
			return nil, r.pipe.err
		}
		return nil, io.EOF
	case <-r.pipe.ctx.Done():
		return nil, asStatus(r.pipe.ctx.Err())
	}
}
