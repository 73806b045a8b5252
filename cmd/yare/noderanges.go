package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// nodeRanges follows which pod addresses the Node of a server that has joined has. The server has made its network of those that it was told when it
// was admitted; where somebody deletes the Node, the cluster gives it the ones that are free then. The next start has these.
func (s *server) nodeRanges() run.Component {
	return run.Func("pod addresses", func(ctx context.Context, ready func()) error {
		ready()
		if !s.record.Joined {
			<-ctx.Done() // the cluster's first Node has the first ones
		}
		for ctx.Err() == nil {
			if err := s.followNodeRanges(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("it is not known which pod addresses this server's Node has", "err", err)
			}
			_ = run.Pause(ctx, time.Second)
		}
		return nil
	})
}

func (s *server) followNodeRanges(ctx context.Context) error {
	has := s.record.NodeRanges()
	for e, err := range s.admin().Watch(ctx, api.NodeKind, client.Query{Fields: fields.OneTermEqualSelector("metadata.name", s.config.NodeName)}, 0) {
		if err != nil {
			return fmt.Errorf("watch node %s: %w", s.config.NodeName, err)
		}
		n, ok := e.Object.(*corev1.Node)
		if !ok || e.Op == client.Deleted {
			continue
		}
		given := podCIDRs(n)
		if len(given) == 0 || slices.Equal(given, has) {
			continue
		}
		s.log.Error("this server's Node has other pod addresses than its pods, which other nodes do not reach: restart the server, and make those pods anew that have addresses of before",
			"node", n.Name, "given", given, "before", has)
		if err := s.record.KeepNodeRanges(given); err != nil {
			return fmt.Errorf("keep pod addresses for the next start: %w", err)
		}
		has = given
	}
	return nil
}
