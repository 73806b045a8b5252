package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/match"
	"github.com/yare-dev/yare/apiserver/rest"
)

const plugin = "MutatingAdmissionWebhook"

func (w *Webhooks) mutate(ctx context.Context, a *rest.Admitting) error {
	all, err := w.mutating.all()
	if err != nil || len(all) == 0 || match.Exempt(a) {
		return err
	}
	n, r, round := match.RoundsOf[string](a, plugin), match.New(w.d.Store, a), 0
	if a.Again {
		round = 1
	}
	for i, h := range all {
		form, err := w.relevant(ctx, r, h)
		if err != nil {
			return err
		}
		if form == nil || a.Again && !n.Again(h.id) { // who was passed over in the first round is so in the second, too
			continue
		}
		at := fmt.Sprintf("mutation.webhook.admission.k8s.io/round_%d_index_%d", round, i)
		changed, err := w.change(ctx, r, h, form, at)
		if changed {
			n.Changed()
			a.AskAgain()
		}
		if h.again {
			n.Asked(h.id)
		}
		if err := w.settle(ctx, r, h, "admit", err, "failed-open."+at); err != nil {
			return err
		}
	}
	n.Leave(a)
	return nil
}

// change asks one webhook and does to the object what it says. at is the name of the audit annotation that says so.
func (w *Webhooks) change(ctx context.Context, r *match.Request, h *hook, form *api.Kind, at string) (changed bool, err error) {
	begin := time.Now()
	answer, err := w.call(ctx, r, h, form, true)
	heed(r, h, answer)
	if err == nil {
		changed, err = apply(ctx, r, h, form, answer, "patch."+at[len("mutation."):])
	}
	w.meter.called(h, "admit", string(r.Operation), time.Since(begin), err)
	note := struct {
		Configuration string `json:"configuration"`
		Webhook       string `json:"webhook"`
		Mutated       bool   `json:"mutated"`
	}{h.configuration, h.name, changed}
	if text, err := json.Marshal(note); err == nil {
		r.Annotate(at, string(text))
	}
	return changed, err
}

// apply patches the object.
func apply(ctx context.Context, r *match.Request, h *hook, form *api.Kind, answer *admissionv1.AdmissionResponse, at string) (changed bool, err error) {
	if len(answer.Patch) == 0 {
		return false, nil
	}
	ops, err := jsonpatch.DecodePatch(answer.Patch)
	if err != nil {
		return false, &failure{h.name, fmt.Errorf("received undecodable patch in webhook response: %w", err), http.StatusServiceUnavailable}
	}
	if len(ops) == 0 {
		return false, nil
	}
	v, err := r.View(ctx, form)
	if err != nil {
		return false, err
	}
	before := v.VersionedObject.Object()
	if before == nil {
		return false, apierrors.NewInternalError(fmt.Errorf("admission webhook %q attempted to modify the object, which is not supported for this operation", h.name))
	}
	if *answer.PatchType != admissionv1.PatchTypeJSONPatch {
		return false, &failure{h.name, fmt.Errorf("unsupported patch type %q", *answer.PatchType), http.StatusBadRequest}
	}
	doc, err := api.EncodeJSON(before)
	if err != nil {
		return false, apierrors.NewInternalError(err)
	}
	if doc, err = rest.ApplyJSONPatch(ops, doc); err != nil {
		return false, apierrors.NewInternalError(err)
	}
	now := r.Empty(form)
	if _, err := api.DecodeJSON(doc, now); err != nil { // fields that it does not know are left out
		return false, apierrors.NewInternalError(errors.Unwrap(err))
	}
	changed = !equality.Semantic.DeepEqual(before, now)
	note := struct {
		Configuration string          `json:"configuration"`
		Webhook       string          `json:"webhook"`
		Patch         json.RawMessage `json:"patch,omitempty"`
		PatchType     string          `json:"patchType,omitempty"`
	}{h.configuration, h.name, answer.Patch, string(*answer.PatchType)}
	if text, err := json.Marshal(note); err == nil {
		r.Annotate(at, string(text))
	}
	return changed, r.Take(ctx, form, now)
}
