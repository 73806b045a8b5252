package apiserver

import (
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// encoding is how bytes stand for an object.
type encoding uint8

const (
	asJSON encoding = iota
	asYAML
	asProtobuf
)

// Media types of the encodings.
const (
	typeJSON     = "application/json"
	typeYAML     = "application/yaml"
	typeProtobuf = "application/vnd.kubernetes.protobuf"
)

func (e encoding) String() string { return [...]string{typeJSON, typeYAML, typeProtobuf}[e] }

// shape is what of an object is sent.
type shape uint8

const (
	whole shape = iota
	table
	metadataOnly
)

// format is an encoding with a shape.
type format struct {
	encoding encoding
	shape    shape
	pretty   bool
}

// accepted is one entry of an Accept header.
type accepted struct {
	media  string
	params map[string]string
	weight float64
}

func parseAccept(h string) []accepted {
	var as []accepted
	for part := range strings.SplitSeq(h, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		media, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		a := accepted{media, params, 1}
		if q, err := strconv.ParseFloat(params["q"], 64); err == nil {
			a.weight = q
		}
		as = append(as, a)
	}
	slices.SortStableFunc(as, func(a, b accepted) int {
		switch {
		case a.weight > b.weight:
			return -1
		case a.weight < b.weight:
			return 1
		}
		return 0
	})
	return as
}

// mediaTypes are what the server can send, by what a client may call them.
func mediaEncoding(media string) (encoding, bool) {
	switch media {
	case typeJSON, "application/*", "*/*":
		return asJSON, true
	case typeYAML:
		return asYAML, true
	case typeProtobuf:
		return asProtobuf, true
	}
	return 0, false
}

// negotiate finds the first format of the Accept header that the server has. List says that the answer is a list;
// shapes that it may have other than whole.
func negotiate(r *http.Request, shapes bool) (format, error) {
	f := format{pretty: pretty(r)}
	as := parseAccept(strings.Join(r.Header["Accept"], ","))
	if len(as) == 0 {
		return f, nil
	}
	for _, a := range as {
		enc, ok := mediaEncoding(a.media)
		if !ok {
			continue
		}
		sh, ok := a.shape(enc, shapes)
		if !ok {
			continue
		}
		f.encoding, f.shape = enc, sh
		return f, nil
	}
	return f, notAcceptable()
}

func (a accepted) shape(enc encoding, shapes bool) (shape, bool) {
	if s := a.params["stream"]; s != "" && s != "watch" {
		return 0, false
	}
	as := a.params["as"]
	if as == "" {
		return whole, true
	}
	if !shapes || a.params["g"] != metav1.GroupName || a.params["v"] != "v1" {
		return 0, false
	}
	switch as {
	case "Table":
		return table, enc != asProtobuf
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		return metadataOnly, true
	}
	return 0, false
}

func notAcceptable() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
		Message: "only the following media types are accepted: " + strings.Join([]string{typeJSON, typeYAML, typeProtobuf}, ", "),
	}}
}

// negotiateError is negotiate for answers that have to be sent in any case.
func negotiateError(r *http.Request) format {
	f := format{pretty: pretty(r)}
	for _, a := range parseAccept(strings.Join(r.Header["Accept"], ",")) {
		if enc, ok := mediaEncoding(a.media); ok {
			f.encoding = enc
			break
		}
	}
	return f
}

// pretty says whether a person reads the answer.
func pretty(r *http.Request) bool {
	if strings.Contains(r.URL.RawQuery, "pretty") {
		if p, given := r.URL.Query()["pretty"]; given {
			on, err := strconv.ParseBool(p[0])
			return p[0] == "" || err == nil && on
		}
	}
	ua := r.UserAgent()
	return strings.HasPrefix(ua, "curl") || strings.HasPrefix(ua, "Wget") || strings.HasPrefix(ua, "Mozilla/5.0")
}

// bodyEncoding is the encoding of what the client sent. Bodies without a Content-Type are JSON.
func bodyEncoding(r *http.Request) (encoding, error) {
	ct := r.Header.Get("Content-Type")
	if ct == "" {
		return asJSON, nil
	}
	media, _, err := mime.ParseMediaType(ct)
	if err == nil {
		switch media {
		case typeJSON:
			return asJSON, nil
		case typeYAML:
			return asYAML, nil
		case typeProtobuf:
			return asProtobuf, nil
		}
	}
	return 0, unsupportedMedia(fmt.Sprintf("the body of the request was in an unknown format - accepted media types include: %s, %s, %s",
		typeJSON, typeYAML, typeProtobuf))
}

func unsupportedMedia(text string) error {
	err := apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", schema.GroupResource{}, "", text, 0, false)
	err.ErrStatus.Message = text
	err.ErrStatus.Details = nil
	return err
}
