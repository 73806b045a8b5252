package webhook

import (
	"context"
	"fmt"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/match"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
)

// asking is a call of a validating webhook.
type asking struct {
	hook   *hook
	form   *api.Kind
	answer *admissionv1.AdmissionResponse
	err    error
}

func (w *Webhooks) validate(ctx context.Context, a *rest.Admitting) error {
	all, err := w.validating.all()
	if err != nil || len(all) == 0 || match.Exempt(a) {
		return err
	}
	r := match.New(w.d.Store, a)
	var asked []*asking
	for _, h := range all {
		form, err := w.relevant(ctx, r, h)
		if err != nil {
			return err
		}
		if form != nil {
			asked = append(asked, &asking{hook: h, form: form})
		}
	}
	if len(asked) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
	}
	var wg sync.WaitGroup
	for _, k := range asked {
		wg.Go(func() {
			// Of a request's own goroutine the server takes care; here a panic would end it.
			if v := run.Guard(w.d.Log.With("webhook", k.hook.name), "webhook call", func() {
				begin := time.Now()
				k.answer, k.err = w.call(ctx, r, k.hook, k.form, false)
				w.meter.called(k.hook, "validating", string(r.Operation), time.Since(begin), k.err)
			}); v != nil {
				k.err = apierrors.NewInternalError(fmt.Errorf("ValidatingAdmissionWebhook/%v has panicked: %v", k.hook.name, v))
			}
		})
	}
	wg.Wait()
	var first error
	for i, k := range asked {
		heed(r, k.hook, k.answer)
		err := w.settle(ctx, r, k.hook, "validating", k.err, fmt.Sprintf("failed-open.validating.webhook.admission.k8s.io/round_0_index_%d", i))
		if first == nil {
			first = err
		}
	}
	return first
}
