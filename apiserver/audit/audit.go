// Package audit records who asked what of the API server, by upstream's policies (audit.k8s.io/v1) and in its form, in a
// file or at a webhook. It replaces k8s.io/apiserver's audit packages.
//
// Requests over HTTP are recorded, and what the components of this process write through their own client. What these read is
// not: it is in their memory already.
//
//	request ── Begin ──> Record ── notes on the way ──> Complete
//	              │RequestReceived        │ResponseStarted   │ResponseComplete, Panic
//	              └───────────────────────┴───────────────────┴──> Backends
package audit

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/yare-dev/yare/apiserver/authn"
)

// Config says what is recorded and where.
type Config struct {
	// PolicyFile has the policy. Without it nothing is recorded.
	PolicyFile string
	// File is used where it has a path.
	File FileConfig
	// WebhookKubeconfig names a service that gets events in batches.
	WebhookKubeconfig string
}

// New returns the Log that c asks for, nil where it asks for none.
func New(c Config, log *slog.Logger) (*Log, error) {
	if c.PolicyFile == "" {
		if c.File.Path != "" || c.WebhookKubeconfig != "" {
			return nil, errors.New("an audit log without a policy records nothing: give a policy file")
		}
		return nil, nil
	}
	p, err := LoadPolicy(c.PolicyFile)
	if err != nil {
		return nil, err
	}
	l := &Log{policy: p, slog: log.With("component", "audit"), meter: newMeter()}
	if c.File.Path != "" {
		l.backends = append(l.backends, newFile(c.File, time.Now))
	}
	if c.WebhookKubeconfig != "" {
		hook, err := authn.NewWebhook(c.WebhookKubeconfig, hookTimeout)
		if err != nil {
			return nil, err
		}
		l.backends = append(l.backends, newBatches(hook.Send, l.slog))
	}
	return l, nil
}

// Run sends batches until ctx ends, and then what is left. The log is usable before.
func (l *Log) Run(ctx context.Context) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	var errs []error
	for _, b := range l.backends {
		if w, ok := b.(*batches); ok {
			w.run(ctx)
		}
	}
	<-ctx.Done()
	for _, b := range l.backends {
		if f, ok := b.(*file); ok {
			errs = append(errs, f.close())
		}
	}
	return errors.Join(errs...)
}
