package pki

import (
	"context"
	"log/slog"
	"time"

	"github.com/yare-dev/yare/run"
)

// retryRenewal is when a renewal that failed is tried again; certificates have months left then.
const retryRenewal = time.Hour

// Renewer is a Component that renews certificates while the process runs, so that one that is never restarted does not
// lose its connections after a year.
func (p *PKI) Renewer(log *slog.Logger) run.Component {
	return run.Func("pki", func(ctx context.Context, ready func()) error {
		ready()
		for {
			next, err := p.Renew()
			if err != nil {
				log.Error("certificates not renewed", "err", err)
				next = retryRenewal
			}
			if err := run.Pause(ctx, next); err != nil {
				return err
			}
		}
	})
}
