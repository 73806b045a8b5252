package apiserver

import (
	"cmp"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	metav1beta1 "k8s.io/apimachinery/pkg/apis/meta/v1beta1"

	"github.com/yare-dev/yare/apiserver/rest"
)

// encoding is how bytes stand for an object.
type encoding uint8

const (
	asJSON encoding = iota
	asYAML
	asProtobuf
	asCBOR
)

// Media types of the encodings.
const (
	typeJSON     = "application/json"
	typeYAML     = "application/yaml"
	typeProtobuf = "application/vnd.kubernetes.protobuf"
	typeCBOR     = "application/cbor"
	typeCBORSeq  = "application/cbor-seq" // of a watch
)

// encodings are in the order in which they are offered to a client that takes anything.
var encodings = [...]string{typeJSON, typeYAML, typeProtobuf, typeCBOR}

func (e encoding) String() string { return encodings[e] }

// streams says that watches can be sent in the encoding.
func (e encoding) streams() bool { return e != asYAML }

// shape is what of an object is sent.
type shape uint8

const (
	whole shape = iota
	table
	metadataOnly // of one object
	metadataList
)

// format is an encoding with a shape.
type format struct {
	encoding encoding
	shape    shape
	beta     bool // the shape is of meta.k8s.io/v1beta1
	pretty   bool
	table    metav1.TableOptions
}

// version is that of the shape.
func (f format) version() string {
	if f.beta {
		return metav1beta1.SchemeGroupVersion.String()
	}
	return metav1.SchemeGroupVersion.String()
}

// accepted is one entry of an Accept header.
type accepted struct {
	media  string
	params map[string]string
	weight float64
}

// vague counts the asterisks of the media type: more exact ones count first.
func (a accepted) vague() int { return strings.Count(a.media, "*") }

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
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.vague(), b.vague()))
	})
	return as
}

// offers are the encodings that a media type of an Accept header takes.
func (a accepted) offers() []encoding {
	switch a.media {
	case "application/*", "*/*":
		return []encoding{asJSON, asYAML, asProtobuf, asCBOR}
	case typeCBORSeq:
		return []encoding{asCBOR}
	}
	if i := slices.Index(encodings[:], a.media); i >= 0 {
		return []encoding{encoding(i)}
	}
	return nil
}

// negotiate finds the first format of the Accept header that the server has. Shapes says that the answer may have others
// than the whole.
func negotiate(r *http.Request, shapes bool) (format, error) {
	return negotiateOf(r, shapes, encodings[:])
}

// negotiate is negotiate for what the request is about: custom resources have no form in protobuf, only their metadata has.
func (c *call) negotiate(r *rest.Request, shapes bool) (format, error) {
	if r.Any.Custom() == nil || r.Sub == "scale" {
		return negotiate(c.r, shapes)
	}
	return negotiateOf(c.r, shapes, []string{typeJSON, typeYAML, typeCBOR})
}

// negotiateOf finds a format in which an object as a whole is of one of the types.
func negotiateOf(r *http.Request, shapes bool, types []string) (format, error) {
	f, ok := choose(r, shapes, types)
	if !ok {
		return f, notAcceptable(types)
	}
	if f.shape != table {
		return f, nil
	}
	q := r.URL.Query()
	f.table.NoHeaders = q.Has("noHeaders") && !slices.Contains([]string{"false", "0"}, strings.ToLower(q.Get("noHeaders")))
	f.table.IncludeObject = metav1.IncludeObjectPolicy(q.Get("includeObject"))
	if errs := metavalidation.ValidateTableOptions(&f.table); len(errs) > 0 {
		return f, apierrors.NewBadRequest(fmt.Sprintf("Unable to convert to Table as requested: %v", errs[0]))
	}
	return f, nil
}

func choose(r *http.Request, shapes bool, types []string) (format, bool) {
	f := format{pretty: pretty(r)}
	if len(r.Header["Accept"]) == 0 || r.Header.Get("Accept") == "" {
		return f, true
	}
	if r.Header["Accept"][0] == typeProtobuf && len(types) == len(encodings) { // the usual one of components, without parsing
		f.encoding = asProtobuf
		return f, true
	}
	for _, a := range parseAccept(strings.Join(r.Header["Accept"], ",")) {
		for _, enc := range a.offers() {
			sh, ok := a.shape(enc, shapes)
			if !ok || sh == whole && !slices.Contains(types, enc.String()) {
				continue
			}
			f.encoding, f.shape = enc, sh
			f.beta = sh != whole && a.params["v"] == "v1beta1"
			f.pretty = f.pretty || a.params["pretty"] == "1"
			return f, true
		}
	}
	return f, false
}

func (a accepted) shape(enc encoding, shapes bool) (shape, bool) {
	if s := a.params["stream"]; s != "" && (s != "watch" || !enc.streams()) {
		return 0, false
	}
	as, group, version := a.params["as"], a.params["g"], a.params["v"]
	if as == "" && group == "" && version == "" {
		return whole, true
	}
	if !shapes || group != metav1.GroupName || version != "v1" && version != "v1beta1" {
		return 0, false
	}
	switch as {
	case "Table":
		return table, enc == asJSON || enc == asYAML
	case "PartialObjectMetadata":
		return metadataOnly, true
	case "PartialObjectMetadataList":
		return metadataList, true
	}
	return 0, false
}

func notAcceptable(types []string) error {
	return unacceptable("only the following media types are accepted: " + strings.Join(types, ", "))
}

func unacceptable(text string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable, Message: text,
	}}
}

// negotiateError is negotiate for answers that have to be sent in any case.
func negotiateError(r *http.Request) format {
	f, ok := choose(r, false, encodings[:])
	if !ok {
		f.pretty = true
	}
	return f
}

// pretty says whether a person reads the answer.
func pretty(r *http.Request) bool {
	if strings.Contains(r.URL.RawQuery, "pretty") {
		if p := r.URL.Query().Get("pretty"); p != "" {
			on, err := strconv.ParseBool(p)
			return err == nil && on
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
		if i := slices.Index(encodings[:], media); i >= 0 {
			return encoding(i), nil
		}
	}
	return 0, unknownBody(encodings[:])
}

func unknownBody(types []string) error {
	text := "the body of the request was in an unknown format - accepted media types include: " + strings.Join(types, ", ")
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType, Reason: metav1.StatusReasonUnsupportedMediaType, Message: text,
	}}
}
