package crd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/callout"
)

// convert is part of rest.Custom: it returns os in the version, in new values that may share memory with os; those that are in it
// already are returned as they are.
func (d *definition) convert(ctx context.Context, os []api.Object, version string) ([]api.Object, error) {
	to := schema.GroupVersion{Group: d.crd.Spec.Group, Version: version}
	out := slices.Clone(os)
	var at []int // which are to be converted
	for i, o := range os {
		from := o.(object).GroupVersionKind().GroupVersion()
		if d.versions[from.Version] == nil || from.Group != to.Group {
			return nil, fmt.Errorf("request to convert CR from an invalid group/version: %s", from)
		}
		if from != to {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return out, nil
	}
	if c := d.crd.Spec.Conversion; c != nil && c.Strategy == apiextensionsv1.WebhookConverter {
		return out, d.convertByWebhook(ctx, out, at, to)
	}
	for _, i := range at {
		next := &unstructured.Unstructured{Object: maps.Clone(os[i].(object).Object)}
		next.SetAPIVersion(to.String())
		out[i] = next
	}
	return out, nil
}

// convertByWebhook replaces those of os that stand at the places by what the webhook makes of them.
func (d *definition) convertByWebhook(ctx context.Context, os []api.Object, at []int, to schema.GroupVersion) error {
	from := os[at[0]].GetObjectKind().GroupVersionKind()
	request := &apiextensionsv1.ConversionRequest{UID: uuid.NewUUID(), DesiredAPIVersion: to.String()}
	for _, i := range at {
		request.Objects = append(request.Objects, runtime.RawExtension{Object: os[i]})
	}
	converted, err := d.ask(ctx, request)
	if err != nil {
		return fmt.Errorf("conversion webhook for %v failed: %w", from, err)
	}
	if len(converted) != len(at) {
		return fmt.Errorf("conversion webhook for %v returned %d objects, expected %d", from, len(converted), len(at))
	}
	for n, i := range at {
		o := &unstructured.Unstructured{}
		if err := o.UnmarshalJSON(converted[n].Raw); err != nil {
			return fmt.Errorf("conversion webhook for %v returned invalid converted object at index %d: %w", from, n, err)
		}
		if err := accept(os[i].(object), o, to); err != nil {
			return fmt.Errorf("conversion webhook for %v returned invalid converted object at index %d: %w", from, n, err)
		}
		if err := restoreMeta(os[i].(object), o); err != nil {
			return fmt.Errorf("conversion webhook for %v returned invalid metadata in object at index %d: %w", from, n, err)
		}
		os[i] = o
	}
	return nil
}

// patience is how long a webhook may take, as upstream has it.
const patience = 30 * time.Second

// ask sends the request to the webhook and returns the objects of its answer.
func (d *definition) ask(ctx context.Context, request *apiextensionsv1.ConversionRequest) ([]runtime.RawExtension, error) {
	hook := d.crd.Spec.Conversion.Webhook
	if hook == nil || hook.ClientConfig == nil {
		return nil, errors.New("the definition names no webhook")
	}
	known := []string{"v1", "v1beta1"}
	i := slices.IndexFunc(hook.ConversionReviewVersions, func(v string) bool { return slices.Contains(known, v) })
	if i < 0 {
		return nil, errors.New("no supported conversion review versions")
	}
	form := metav1.TypeMeta{APIVersion: apiextensionsv1.GroupName + "/" + hook.ConversionReviewVersions[i], Kind: "ConversionReview"}
	review := &apiextensionsv1.ConversionReview{TypeMeta: form, Request: request}
	answer := &apiextensionsv1.ConversionReview{}
	if d.hooks == nil {
		return nil, errors.New("this server calls no webhooks")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	to := callout.To(hook.ClientConfig.URL, (*callout.Reference)(hook.ClientConfig.Service), hook.ClientConfig.CABundle)
	if err := d.hooks.Post(ctx, to, nil, review, answer); err != nil {
		// Its text alone: a client that was told the webhook's 404 would take the object for gone.
		return nil, errors.New(err.Error())
	}
	switch {
	case form.APIVersion == apiextensionsv1.SchemeGroupVersion.String() && answer.TypeMeta != form:
		return nil, fmt.Errorf("expected webhook response of %v, got %v", form.GroupVersionKind(), answer.GroupVersionKind())
	case answer.Response == nil:
		return nil, errors.New("no response provided")
	case form.APIVersion == apiextensionsv1.SchemeGroupVersion.String() && answer.Response.UID != request.UID:
		return nil, fmt.Errorf("expected response.uid=%q, got %q", request.UID, answer.Response.UID)
	case answer.Response.Result.Status != metav1.StatusSuccess && answer.Response.Result.Message != "":
		return nil, errors.New(answer.Response.Result.Message)
	case answer.Response.Result.Status != metav1.StatusSuccess:
		return nil, fmt.Errorf("response.result.status was '%s', not 'Success'", answer.Response.Result.Status)
	}
	return answer.Response.ConvertedObjects, nil
}

// accept checks that what a webhook made of an object is that object.
func accept(was, is object, to schema.GroupVersion) error {
	switch {
	case is.GroupVersionKind().GroupVersion() != to:
		return fmt.Errorf("invalid groupVersion (expected %v, received %v)", to, is.GroupVersionKind().GroupVersion())
	case is.GetKind() != was.GetKind():
		return fmt.Errorf("invalid kind (expected %v, received %v)", was.GetKind(), is.GetKind())
	case is.GetName() != was.GetName():
		return fmt.Errorf("must have the same name: %v != %v", was.GetName(), is.GetName())
	case is.GetNamespace() != was.GetNamespace():
		return fmt.Errorf("must have the same namespace: %v != %v", was.GetNamespace(), is.GetNamespace())
	case is.GetUID() != was.GetUID():
		return fmt.Errorf("must have the same UID: %v != %v", was.GetUID(), is.GetUID())
	}
	return nil
}

// restoreMeta takes back what a webhook may not change: all metadata but labels and annotations, which it checks.
func restoreMeta(was, is object) error {
	sent, ok := is.Object["metadata"].(map[string]any)
	if !ok {
		return errors.New("missing metadata in converted object")
	}
	had, _ := was.Object["metadata"].(map[string]any)
	kept := runtime.DeepCopyJSON(had)
	if kept == nil {
		kept = map[string]any{}
	}
	for _, name := range []string{"labels", "annotations"} {
		delete(kept, name)
		if sent[name] == nil {
			continue
		}
		given, ok := sent[name].(map[string]any)
		if !ok {
			return fmt.Errorf("invalid metadata.%s of type %T in converted object", name, sent[name])
		}
		text := make(map[string]string, len(given))
		for k, v := range given {
			if text[k], ok = v.(string); !ok {
				return fmt.Errorf("metadata.%s[%s] must be a string, but is %T in converted object", name, k, v)
			}
		}
		before, _, _ := unstructured.NestedStringMap(was.Object, "metadata", name)
		if !maps.Equal(before, text) {
			if err := checkTexts(name, text); err != nil {
				return err
			}
		}
		kept[name] = given
	}
	is.Object["metadata"] = kept
	return nil
}

func checkTexts(name string, text map[string]string) error {
	if name == "labels" {
		return metavalidation.ValidateLabels(text, field.NewPath("metadata", "labels")).ToAggregate()
	}
	return apivalidation.ValidateAnnotations(text, field.NewPath("metadata", "annotation")).ToAggregate()
}
