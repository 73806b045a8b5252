package sealed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	kms "k8s.io/kms/apis/v2"

	"github.com/yare-dev/yare/run"
)

// Upstream's figures: how often a key management service is asked whether it is well, and how soon again when it is not, and for how
// long connections that are not used any more stay open.
const (
	probeEvery = time.Minute
	probeAgain = 10 * time.Second
	farewell   = 30 * time.Second
)

// Follow returns the Component that reads the file anew when it has changed. Rules whose key management services are not well are
// not taken.
func (b *Backend) Follow() run.Component {
	return run.Func("encryption", func(ctx context.Context, ready func()) error {
		var leaving sync.WaitGroup
		defer leaving.Wait()
		return run.Follow(b.file, b.text, b.log, func(ctx context.Context, text []byte) error {
			old, err := b.take(ctx, text)
			if err != nil {
				return fmt.Errorf("encryption configuration in %s: %w", b.file, err)
			}
			leaving.Go(func() {
				_ = run.Pause(ctx, farewell) // who reads by them still may
				if err := old.close(); err != nil {
					b.log.Warn("connection to a key management service does not close", "err", err)
				}
			})
			return nil
		}).Run(ctx, ready)
	})
}

// take makes a file's text the rules and returns those before.
func (b *Backend) take(ctx context.Context, text []byte) (old *rules, err error) {
	next, err := b.rules(text)
	if err != nil {
		return nil, err
	}
	if err := next.probe(ctx); err != nil {
		return nil, errors.Join(err, next.close())
	}
	return b.now.Swap(next), nil
}

// Well is an error when a key management service is not well.
func (b *Backend) Well(ctx context.Context) error { return b.now.Load().probe(ctx) }

// probe is an error when a service is not well.
func (r *rules) probe(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(r.services)) {
		if err := r.services[name].probe(ctx); err != nil {
			return fmt.Errorf("key management service %s: %w", name, err)
		}
	}
	return nil
}

// probe asks the service how it is, unless it has said so not long ago.
func (s *service) probe(ctx context.Context) error {
	s.health.Lock()
	defer s.health.Unlock()
	fresh := probeEvery
	if s.ill != nil {
		fresh = probeAgain
	}
	if !s.probed.IsZero() && time.Since(s.probed) < fresh {
		return s.ill
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	status, err := s.client.Status(ctx, &kms.StatusRequest{})
	if err == nil {
		err = well(status)
	}
	s.ill, s.probed = err, time.Now()
	return err
}

// well is an error when a service says that it is not, or speaks a language that we do not.
func well(s *kms.StatusResponse) error {
	switch {
	case s.Healthz != "ok" || s.Version != "v2" && s.Version != "v2beta1":
		return fmt.Errorf("key management service is %q, version %s", s.Healthz, s.Version)
	case s.KeyId == "":
		return errors.New("key management service names no key")
	}
	return nil
}
