package remote

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

func (c *Client) kindOf(o api.Object) (*api.Kind, error) {
	if k := api.KindOf(o); k != nil {
		return k, nil
	}
	// That of a custom resource is the one by which objects like it were read.
	if k, ok := c.custom.Load(o.GetObjectKind().GroupVersionKind()); ok {
		return k.(*api.Kind), nil
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("%T is no kind of the API", o))
}

// Create is part of client.Writer.
func (c *Client) Create(ctx context.Context, o api.Object) (api.Object, error) {
	k, err := c.kindOf(o)
	if err != nil {
		return nil, err
	}
	return c.put(ctx, http.MethodPost, target{k, api.Key{Namespace: o.GetNamespace()}, ""}, o)
}

// Update is part of client.Writer.
func (c *Client) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	k, err := c.kindOf(o)
	if err != nil {
		return nil, err
	}
	t := target{k, api.KeyOf(o), sub}
	return c.put(ctx, http.MethodPut, t, o)
}

// UpdateScale is part of client.Writer.
func (c *Client) UpdateScale(ctx context.Context, k *api.Kind, s *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
	s.GetObjectKind().SetGroupVersionKind(api.ScaleKind.GVK())
	contentType, body, err := encode(api.ScaleKind, s)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	o, err := c.one(ctx, http.MethodPut, target{k, api.KeyOf(s), "scale"}, api.ScaleKind, nil, contentType, body)
	if err != nil {
		return nil, err
	}
	return o.(*autoscalingv1.Scale), nil
}

// put writes o and notes what was answered.
func (c *Client) put(ctx context.Context, verb string, t target, o api.Object) (api.Object, error) {
	contentType, body, err := encode(t.kind, o)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	got, err := c.one(ctx, verb, t, t.kind, nil, contentType, body)
	if err != nil {
		return nil, err
	}
	c.wrote(t.kind, got)
	return got, nil
}

// wrote lays o over the table of its kind.
func (c *Client) wrote(k *api.Kind, o api.Object) {
	if t := c.table(k); t != nil {
		t.wrote(o)
	}
}

// Patch is part of client.Writer.
func (c *Client) Patch(ctx context.Context, k *api.Kind, key api.Key, p client.Patch) (api.Object, error) {
	q := url.Values{}
	if p.Manager != "" {
		q.Set("fieldManager", p.Manager)
	}
	if p.Force && p.Type == types.ApplyYAMLPatchType {
		q.Set("force", "true")
	}
	t := target{k, key, p.Sub}
	if p.Sub == "scale" {
		// Answered by a Scale; the caller knows the object.
		if _, _, err := c.call(ctx, http.MethodPatch, t, q, string(p.Type), p.Data); err != nil {
			return nil, err
		}
		return c.Get(client.Live(ctx), k, key)
	}
	got, err := c.one(ctx, http.MethodPatch, t, k, q, string(p.Type), p.Data)
	if err != nil {
		return nil, err
	}
	c.wrote(k, got)
	return got, nil
}

// Delete is part of client.Writer.
func (c *Client) Delete(ctx context.Context, o api.Object, opts client.DeleteOptions) error {
	k, err := c.kindOf(o)
	if err != nil {
		return err
	}
	d := opts.For(o)
	d.APIVersion, d.Kind = "v1", "DeleteOptions"
	body, err := api.EncodeJSON(d)
	if err != nil {
		return err
	}
	t := target{k, api.KeyOf(o), ""}
	ct, data, err := c.call(ctx, http.MethodDelete, t, nil, "application/json", body)
	if err != nil {
		return err
	}
	table := c.table(k)
	if table == nil {
		return nil
	}
	left := k.New()
	if decode(ct, data, left) == nil && left.GetUID() != "" && waits(left) {
		table.wrote(left)
	} else {
		table.deleted(t.key, o.GetUID())
	}
	return nil
}

// waits says that a deleted object still exists: until its time is over, or its finalizers are done.
func waits(o api.Object) bool {
	if o.GetDeletionTimestamp() == nil {
		return false
	}
	g := o.GetDeletionGracePeriodSeconds()
	return len(o.GetFinalizers()) > 0 || (g != nil && *g > 0)
}

// Post is part of client.Writer.
func (c *Client) Post(ctx context.Context, k *api.Kind, key api.Key, sub string, body api.Object) (api.Object, error) {
	bk, err := c.kindOf(body)
	if err != nil {
		return nil, err
	}
	contentType, data, err := encode(bk, body)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	t := target{k, key, sub}
	ct, answer, err := c.call(ctx, http.MethodPost, t, nil, contentType, data)
	if err != nil {
		return nil, err
	}
	// Answered by the body's kind (a token), or by a Status (a binding), for which the body stands.
	got := bk.New()
	if err := decode(ct, answer, got); err != nil {
		s := &metav1.Status{}
		if decode(ct, answer, s) == nil && s.Status == metav1.StatusSuccess {
			return body, nil
		}
		return nil, fmt.Errorf("post %v: %w", t, err)
	}
	got.GetObjectKind().SetGroupVersionKind(bk.GVK())
	return got, nil
}
