package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionv1beta1 "k8s.io/api/admission/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/admission"
	webhookerrors "k8s.io/apiserver/pkg/admission/plugin/webhook/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/match"
)

// failure is that a webhook could not be asked, or that its answer is none.
type failure struct {
	name  string
	cause error
	code  int // that metrics are told
}

func (f *failure) Error() string {
	return fmt.Sprintf("failed calling webhook %q: %v", f.name, f.cause)
}
func (f *failure) Unwrap() error { return f.cause }

// rejection is that a webhook said no.
type rejection struct{ *apierrors.StatusError }

// call asks the webhook about the request in the form. The error is a *failure, a *rejection, or of the API.
func (w *Webhooks) call(ctx context.Context, r *match.Request, h *hook, form *api.Kind, mutating bool) (*admissionv1.AdmissionResponse, error) {
	if r.DryRun && !h.dryRun {
		return nil, webhookerrors.NewDryRunUnsupportedErr(h.name)
	}
	if h.version == "" {
		return nil, &failure{h.name, errors.New("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)"), http.StatusBadRequest}
	}
	if h.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, h.timeout)
		defer cancel()
	}
	var query url.Values
	if end, ok := ctx.Deadline(); ok {
		if left := time.Until(end); left > 0 {
			query = url.Values{"timeout": {(left + time.Second - 1).Truncate(time.Second).String()}} // whole seconds, and none too few
		}
	}
	v, err := r.View(ctx, form) // was made before: calls share it
	if err != nil {
		return nil, err
	}
	asked := review(v, form, h.version)
	var answer admissionv1.AdmissionReview // that of v1beta1 has the same fields
	if err := w.d.Callout.Post(ctx, h.target, query, asked, &answer); err != nil {
		code := http.StatusServiceUnavailable
		var status apierrors.APIStatus
		if errors.As(err, &status) {
			code = int(status.Status().Code)
		}
		return nil, &failure{h.name, fmt.Errorf("failed to call webhook: %w", err), code}
	}
	if err := verify(&answer, asked, mutating); err != nil {
		return nil, &failure{h.name, fmt.Errorf("received invalid webhook response: %w", err), http.StatusServiceUnavailable}
	}
	if !answer.Response.Allowed {
		return answer.Response, &rejection{webhookerrors.ToStatusErr(h.name, answer.Response.Result)}
	}
	return answer.Response, nil
}

// review is what a webhook is asked, in one of the versions, which have the same fields.
func review(v *admission.VersionedAttributes, form *api.Kind, version string) *admissionv1.AdmissionReview {
	q := match.Review(v, form)
	q.UID = uuid.NewUUID()
	q.Object, q.OldObject = runtime.RawExtension{Object: v.VersionedObject.Object()}, runtime.RawExtension{Object: v.VersionedOldObject.Object()}
	return &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{Kind: "AdmissionReview", APIVersion: schema.GroupVersion{Group: admissionv1.GroupName, Version: version}.String()}, Request: q,
	}
}

// verify says what is wrong with an answer. In v1beta1 less was asked for.
func verify(a, asked *admissionv1.AdmissionReview, mutating bool) error {
	r := a.Response
	if r == nil {
		return errors.New("webhook response was absent")
	}
	patchOf := admissionv1.PatchTypeJSONPatch
	if asked.APIVersion == admissionv1beta1.SchemeGroupVersion.String() {
		if r.PatchType = nil; len(r.Patch) > 0 && mutating {
			r.PatchType = &patchOf
		}
		return nil
	}
	if r.UID != asked.Request.UID {
		return fmt.Errorf("expected response.uid=%q, got %q", asked.Request.UID, r.UID)
	}
	if want, got := admissionv1.SchemeGroupVersion.WithKind("AdmissionReview"), a.GroupVersionKind(); got != want {
		return fmt.Errorf("expected webhook response of %v, got %v", want, got)
	}
	switch {
	case !mutating && len(r.Patch) > 0:
		return errors.New("validating webhook may not return response.patch")
	case !mutating && r.PatchType != nil:
		return errors.New("validating webhook may not return response.patchType")
	case len(r.Patch) > 0 && r.PatchType == nil:
		return errors.New("webhook returned response.patch but not response.patchType")
	case len(r.Patch) == 0 && r.PatchType != nil:
		return errors.New("webhook returned response.patchType but not response.patch")
	case r.PatchType != nil && *r.PatchType == "":
		return fmt.Errorf("webhook returned invalid response.patchType of %q", *r.PatchType)
	}
	return nil
}

// heed passes on what a webhook says beside its answer.
func heed(r *match.Request, h *hook, answer *admissionv1.AdmissionResponse) {
	if answer == nil {
		return
	}
	for k, v := range answer.AuditAnnotations {
		r.Annotate(h.name+"/"+k, v)
	}
	for _, text := range answer.Warnings {
		r.Warn(text)
	}
}

// settle turns the outcome of a call into that of the request: nil where it goes on. Where a failure is passed over, key names its audit
// annotation.
func (w *Webhooks) settle(ctx context.Context, r *match.Request, h *hook, step string, err error, key string) error {
	var (
		failed   *failure
		rejected *rejection
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &rejected):
		return rejected.StatusError
	case !errors.As(err, &failed):
		return err
	}
	canceled := errors.Is(failed.cause, context.Canceled)
	if !h.ignore {
		if !canceled {
			w.d.Log.Warn("webhook failed, and so does the request", "webhook", h.name, "configuration", h.configuration, "err", failed.cause)
		}
		return apierrors.NewInternalError(failed)
	}
	if !canceled {
		w.d.Log.Warn("webhook failed, which is ignored", "webhook", h.name, "configuration", h.configuration, "err", failed.cause)
		w.meter.open.WithLabelValues(h.name, step).Inc()
		r.Annotate(key, h.name)
	}
	if ctx.Err() != nil {
		return apierrors.NewTimeoutError("request did not complete within requested timeout", 0)
	}
	return nil
}
