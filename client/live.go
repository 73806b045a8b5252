package client

import "context"

type liveKey struct{}

// Live returns ctx for reads that must not come from a memory that lags behind the server: what one decides
// upon the absence of an object. A Reader whose memory is the server's own feed may ignore it.
func Live(ctx context.Context) context.Context { return context.WithValue(ctx, liveKey{}, true) }

// IsLive says whether ctx comes from Live.
func IsLive(ctx context.Context) bool {
	live, _ := ctx.Value(liveKey{}).(bool)
	return live
}
