package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// maxPatchOperations bounds a JSON patch, as upstream does.
const maxPatchOperations = 10000

// What the "copy" operations of a JSON patch may make of an object: each can double it, so thirty of them would take all
// memory. maxCopiedSize bounds the document after each copy, maxCopyWork the sum of that over all copies.
const (
	maxCopiedSize = 3 << 20
	maxCopyWork   = 16 << 20
)

// Patch is a patch as the client sent it.
type Patch struct {
	Type   types.PatchType
	Data   []byte
	Force  bool // apply only
	Strict Strictness
}

// wellFormed refuses what is not in the patch's format at all.
func (p Patch) wellFormed() error {
	switch p.Type {
	case types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType:
		if !json.Valid(p.Data) {
			return apierrors.NewBadRequest("invalid JSON patch")
		}
	}
	if p.Type == types.MergePatchType || p.Type == types.StrategicMergePatchType { // some of what reads them reads each level again for each above it
		if err := api.ShallowJSON(p.Data); err != nil {
			return apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
	}
	return nil
}

// Patch changes the object, or its subresource. It says whether an apply created the object.
func (p *Pipeline) Patch(ctx context.Context, r *Request, patch Patch) (*store.Entry, bool, error) {
	r = r.inside()
	if err := patch.wellFormed(); err != nil {
		return nil, false, err
	}
	if patch.Type == types.ApplyYAMLPatchType || patch.Type == types.ApplyCBORPatchType {
		return p.apply(ctx, r, patch)
	}
	if r.Sub == "scale" {
		e, err := p.patchScale(ctx, r, patch)
		return e, false, err
	}
	change, err := r.patcher(patch)
	if err != nil {
		return nil, false, err
	}
	patching := *r
	patching.patching = true
	r = &patching
	return p.modify(ctx, r, false, func(old api.Object) (api.Object, error) {
		now, err := change(r.as().Show(old), r.as().New())
		if err != nil {
			return nil, err
		}
		now = r.as().Store(now)
		if err := r.checkName(now); err != nil {
			return nil, err
		}
		r.Any.r.set(now)
		return now, nil
	})
}

// patcher returns the function that applies the patch to old and decodes the outcome into the empty object now.
func (r *Request) patcher(patch Patch) (func(old, now api.Object) (api.Object, error), error) {
	switch patch.Type {
	case types.JSONPatchType:
		return r.jsonPatcher(patch)
	case types.MergePatchType:
		var m map[string]any
		strict, err := kjson.UnmarshalStrict(patch.Data, &m)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
		}
		return func(old, now api.Object) (api.Object, error) {
			doc, err := api.EncodeJSON(old)
			if err != nil {
				return nil, err
			}
			doc, err = jsonpatch.MergePatch(doc, patch.Data)
			if err != nil {
				return nil, apierrors.NewBadRequest(err.Error())
			}
			return r.patched(doc, now, patch.Strict, strict)
		}, nil
	case types.StrategicMergePatchType:
		if r.Any.r.custom != nil && r.Sub != "scale" {
			return nil, r.noStrategic()
		}
		return r.strategicPatcher(patch)
	}
	return nil, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", r.group(), r.Key.Name, "unknown patch type "+string(patch.Type), 0, false)
}

// operation is what may stand in a JSON patch.
type operation struct {
	Op    string          `json:"op"`
	Path  string          `json:"path"`
	From  string          `json:"from"`
	Value json.RawMessage `json:"value"`
}

func (r *Request) jsonPatcher(patch Patch) (func(old, now api.Object) (api.Object, error), error) {
	var form []operation
	strict, err := kjson.UnmarshalStrict(patch.Data, &form)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	for i := range strict {
		strict[i] = fmt.Errorf("json patch %w", strict[i])
	}
	ops, err := jsonpatch.DecodePatch(patch.Data)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if len(ops) > maxPatchOperations {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf(
			"The allowed maximum operations in a JSON patch is %d, got %d", maxPatchOperations, len(ops)))
	}
	return func(old, now api.Object) (api.Object, error) {
		doc, err := api.EncodeJSON(old)
		if err != nil {
			return nil, err
		}
		doc, err = ApplyJSONPatch(ops, doc)
		if err != nil {
			return nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
		}
		return r.patched(doc, now, patch.Strict, strict)
	}, nil
}

// ApplyJSONPatch applies the operations to a document, in pieces that end with a copy, and gives up when copies make too much of the document.
func ApplyJSONPatch(ops jsonpatch.Patch, doc []byte) ([]byte, error) {
	work := 0
	for begin, i := 0, 0; i < len(ops); i++ {
		isCopy := ops[i].Kind() == "copy"
		if !isCopy && i < len(ops)-1 {
			continue
		}
		var err error
		if doc, err = ops[begin : i+1].Apply(doc); err != nil {
			return nil, err
		}
		begin = i + 1
		if !isCopy {
			continue
		}
		if work += len(doc); len(doc) > maxCopiedSize || work > maxCopyWork {
			return nil, fmt.Errorf("operation %d: the copies of this patch make the object too large", i)
		}
	}
	return doc, nil
}

// patched decodes a patched document. Strict are the errors of the patch itself.
func (r *Request) patched(doc []byte, now api.Object, how Strictness, strict []error) (api.Object, error) {
	more, err := api.DecodeJSON(doc, now)
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil {
			err = inner // the client knows that it is about decoding
		}
		return nil, r.badPatch(doc, err.Error())
	}
	strict = append(strict[:len(strict):len(strict)], more...)
	if r.Sub != "scale" {
		unknown, err := r.Any.Unknown(now)
		if err != nil {
			return nil, r.badPatch(doc, err.Error())
		}
		strict = append(strict, unknown...)
	}
	if errs := how.check(r, strict); len(errs) > 0 {
		return nil, r.badPatch(doc, runtime.NewStrictDecodingError(errs).Error())
	}
	return now, r.checkKind(now)
}

func (r *Request) badPatch(doc []byte, text string) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "", fieldErrors{
		field.Invalid(field.NewPath("patch"), string(bytes.TrimSpace(doc)), text),
	})
}

// checkKind refuses a patch that changed apiVersion or kind.
func (r *Request) checkKind(now api.Object) error {
	if got, want := now.GetObjectKind().GroupVersionKind(), r.bodyKind().GVK(); got != want {
		return apierrors.NewBadRequest(fmt.Sprintf("no kind %q is registered for version %q at this URL", got.Kind, got.GroupVersion()))
	}
	return nil
}

func (r *Request) bodyKind() *api.Kind {
	if r.Sub == "scale" {
		return api.ScaleKind
	}
	return r.as()
}

func (r *Request) strategicPatcher(patch Patch) (func(old, now api.Object) (api.Object, error), error) {
	read := func() (m map[string]any, strict []error, err error) {
		strict, err = kjson.UnmarshalStrict(patch.Data, &m)
		if err != nil {
			return nil, nil, apierrors.NewBadRequest(err.Error())
		}
		return m, strict, nil
	}
	if _, _, err := read(); err != nil {
		return nil, err
	}
	return func(old, now api.Object) (api.Object, error) {
		from, err := runtime.DefaultUnstructuredConverter.ToUnstructured(old)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		m, strict, err := read() // the merge may change and keep parts of the patch
		if err != nil {
			return nil, err
		}
		merged, err := strategicpatch.StrategicMergeMapPatch(from, m, now)
		switch err {
		case nil:
		case mergepatch.ErrBadJSONDoc, mergepatch.ErrBadPatchFormatForPrimitiveList, mergepatch.ErrBadPatchFormatForRetainKeys,
			mergepatch.ErrBadPatchFormatForSetElementOrderList, mergepatch.ErrUnsupportedStrategicMergePatchFormat:
			return nil, apierrors.NewBadRequest(err.Error())
		default:
			return nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
		}
		err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(merged, now, patch.Strict != metav1.FieldValidationIgnore)
		if unknown, ok := runtime.AsStrictDecodingError(err); ok {
			strict, err = append(strict, unknown.Errors()...), nil
		}
		if err != nil {
			return nil, r.badPatch(fmt.Appendf(nil, "%+v", m), err.Error())
		}
		if errs := patch.Strict.check(r, strict); len(errs) > 0 {
			return nil, r.badPatch(fmt.Appendf(nil, "%+v", m), runtime.NewStrictDecodingError(errs).Error())
		}
		return now, r.checkKind(now)
	}, nil
}

// apply serves server-side apply.
func (p *Pipeline) apply(ctx context.Context, r *Request, patch Patch) (*store.Entry, bool, error) {
	u, err := r.applied(patch)
	if err != nil {
		return nil, false, err
	}
	if r.Sub == "scale" {
		e, err := p.applyScale(ctx, r, u, patch.Force)
		return e, false, err
	}
	owned := *r
	owned.owned = true
	r = &owned
	return p.modify(ctx, r, r.Sub == "", func(old api.Object) (api.Object, error) {
		now, err := p.managers.apply(r, old, u, patch.Force)
		if err != nil {
			return nil, applyError(err)
		}
		if err := r.checkName(now); err != nil {
			return nil, err
		}
		r.Any.r.set(now)
		return now, nil
	})
}

// applied reads the configuration that is applied.
func (r *Request) applied(patch Patch) (*unstructured.Unstructured, error) {
	if r.Manager == "" {
		return nil, apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("PatchOptions").GroupKind(), "", fieldErrors{
			field.Required(field.NewPath("fieldManager"), "is required for apply patch"),
		})
	}
	u := &unstructured.Unstructured{Object: map[string]any{}}
	data, twice, err := patch.Data, error(nil), error(nil)
	if patch.Type == types.ApplyCBORPatchType { // a key given twice is an error there
		err = direct.Unmarshal(data, &u.Object)
	} else if data, twice, err = api.YAMLToJSON(data); err == nil {
		err = json.Unmarshal(data, &u.Object)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	if u.Object == nil {
		return nil, apierrors.NewBadRequest("error decoding patch: it is empty")
	}
	if err := api.Shallow(u.Object); err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	if twice != nil && len(patch.Strict.check(r, []error{twice})) > 0 {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error strict decoding patch: %v", twice))
	}
	switch got, want := u.GroupVersionKind(), r.bodyKind().GVK(); {
	case got.GroupVersion() != want.GroupVersion():
		return nil, apierrors.NewBadRequest(fmt.Sprintf("Incorrect version specified in apply patch. Specified patch version: %s, expected: %s",
			got.GroupVersion(), want.GroupVersion()))
	case got.Kind != want.Kind:
		return nil, apierrors.NewBadRequest("invalid object type: " + got.String())
	}
	return u, nil
}

// applyError keeps errors of the API; others come from what was applied: unknown fields, wrong types.
func applyError(err error) error {
	if _, ok := err.(apierrors.APIStatus); ok {
		return err
	}
	return apierrors.NewBadRequest(err.Error())
}
