package apiserver

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// maxBody bounds what a client may send.
const maxBody = 3 << 20

func (c *call) body() ([]byte, error) {
	if c.r.Body == nil {
		return nil, nil
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxBody))
	case err != nil:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error reading the body: %v", err))
	}
	return b, nil
}

// decode reads the body as an object of the kind that the request is about.
func (c *call) decode(r *rest.Request, strict rest.Strictness) (api.Object, error) {
	k := r.Any.Body(r.Sub)
	data, err := c.body()
	if err != nil {
		return nil, err
	}
	enc, err := bodyEncoding(c.r)
	if err != nil {
		return nil, err
	}
	o, errs, err := decode(enc, data, k)
	if err != nil {
		return nil, err
	}
	if k == r.Any.Kind {
		unknown, err := r.Any.Unknown(o)
		if err != nil {
			return nil, unfit(k, k.GVK(), err)
		}
		errs = append(errs, unknown...)
	}
	c.record.Sent(o)
	switch strict {
	case metav1.FieldValidationStrict:
		if len(errs) > 0 {
			return nil, unfit(k, k.GVK(), runtime.NewStrictDecodingError(errs))
		}
	case metav1.FieldValidationIgnore:
	default:
		for _, e := range errs {
			for _, text := range rest.Warnings(e) {
				c.warn(text)
			}
		}
	}
	return o, nil
}

// decode reads data as an object of kind k. Strict are unknown and duplicate fields.
func decode(enc encoding, data []byte, k *api.Kind) (o api.Object, strict []error, err error) {
	o = k.New()
	sent := data
	switch enc {
	case asProtobuf:
		return o, nil, decodeProto(data, o, k)
	case asCBOR:
		if strict, err = api.DecodeCBOR(data, o); err != nil {
			return nil, nil, unrecognized(k, sent, unwrap(err))
		}
		return o, strict, sameKind(o, k)
	case asYAML:
		json, twice, err := api.YAMLToJSON(data)
		if err != nil {
			return nil, nil, unrecognized(k, sent, err)
		}
		if twice != nil {
			strict = append(strict, twice)
		}
		data = json
	}
	more, err := api.DecodeJSON(data, o)
	if err != nil {
		var named struct {
			APIVersion string `json:"apiVersion,omitempty"`
			Kind       string `json:"kind,omitempty"`
		}
		if err := json.Unmarshal(data, &named); err != nil {
			return nil, nil, unrecognized(k, sent, fmt.Errorf("couldn't get version/kind; json parse error: %w", err))
		}
		return nil, nil, unfit(k, k.GVK(), unwrap(err))
	}
	if err := sameKind(o, k); err != nil {
		return nil, nil, err
	}
	return o, append(strict, more...), nil
}

// unwrap leaves out that an error is about decoding, which the client knows.
func unwrap(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

func decodeProto(data []byte, o api.Object, k *api.Kind) error {
	tm, err := api.ProtoType(data)
	if err == nil && k.Custom() {
		return unfit(k, k.GVK(), fmt.Errorf("object %T does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message", o))
	}
	if err != nil {
		return unrecognized(k, data, err)
	}
	if err := api.DecodeProto(data, o); err != nil {
		return unfit(k, k.GVK(), err)
	}
	o.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(tm.APIVersion, tm.Kind))
	return sameKind(o, k)
}

// sameKind checks that the body is of the kind that the URL names. A body may leave it out.
func sameKind(o api.Object, k *api.Kind) error {
	got := o.GetObjectKind().GroupVersionKind()
	if got.Kind == "" {
		got.Kind = k.Kind
	}
	if got.GroupVersion().Empty() {
		got.Group, got.Version = k.Group, k.Version
	}
	switch {
	case got.Kind != k.Kind:
		return unfit(k, got, fmt.Errorf("%s is not a %s", got.Kind, k.Kind))
	case got.GroupVersion() != k.GroupVersion():
		return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)",
			got.GroupVersion(), k.GroupVersion()))
	}
	o.GetObjectKind().SetGroupVersionKind(k.GVK())
	return nil
}

// unfit is upstream's message for a body that is no object of the kind.
func unfit(k *api.Kind, got schema.GroupVersionKind, err error) error {
	return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", got.Kind, got.Version, k.Kind, err))
}

// unrecognized is upstream's message for a body that cannot be read at all. It shows how the body begins.
func unrecognized(k *api.Kind, body []byte, err error) error {
	const most = 30
	head, more := body[:min(len(body), most)], ""
	if len(body) > most {
		more = " ..."
	}
	summary := hex.EncodeToString(head) + more
	switch {
	case len(body) == 0:
		summary = "<empty>"
	case body[0] == '{':
		summary = string(head) + more
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", k.Kind, err, summary))
}

// deleteOptions reads the options of a deletion from the body, or else from the query.
func (c *call) deleteOptions() (*metav1.DeleteOptions, error) {
	o := new(metav1.DeleteOptions)
	data, err := c.body()
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		q := c.r.URL.Query()
		if err := metav1.Convert_url_Values_To_v1_DeleteOptions(&q, o, nil); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		return o, nil
	}
	enc, err := bodyEncoding(c.r)
	if err != nil {
		return nil, err
	}
	if enc == asYAML {
		data, _, err = api.YAMLToJSON(data)
	}
	switch {
	case err != nil:
	case enc == asProtobuf:
		err = api.DecodeProto(data, o)
	case enc == asCBOR:
		_, err = api.DecodeCBOR(data, o)
	default:
		_, err = api.DecodeJSON(data, o)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest("couldn't get version/kind; json parse error: " + unwrap(err).Error())
	}
	if o.Kind != "" && o.Kind != "DeleteOptions" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("decoded object cannot be converted to DeleteOptions: it is a %s", o.Kind))
	}
	c.record.Sent(o)
	return o, nil
}
