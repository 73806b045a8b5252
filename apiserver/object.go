package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// object serves an API object or collection.
func (c *call) object() error {
	t := c.t
	a, ok := c.catalog.at(t)
	if !ok {
		return c.nothing()
	}
	if !a.Has(t.sub) {
		if a.Custom() != nil {
			return apierrors.NewNotFound(a.Kind.GroupResource(), t.name)
		}
		return c.nothing()
	}
	if t.watchOnly && t.verb != "watch" {
		return c.notAllowed()
	}
	r := c.request(a)
	if sub := a.Sub(t.sub); sub != nil && sub.Connect != nil {
		return c.connect(r, sub)
	}
	switch {
	case c.r.Method == http.MethodHead:
		return c.notAllowed()
	case t.rest != "" || !a.Kind.Namespaced && c.inNamespace(a) || a.Kind.Namespaced && t.namespace == "" && (t.name != "" || !a.Readable()):
		return c.nothing()
	case a.Kind.Namespaced && t.namespace == "" && !c.acrossNamespaces(a):
		return c.notAllowed()
	}
	if text := a.Deprecated(); text != "" {
		c.s.meter.gate.deprecated.WithLabelValues(t.group, t.version, t.plural, t.sub, "").Set(1)
		c.warn(text)
	}
	switch t.verb {
	case "get":
		return c.get(r)
	case "list":
		return c.listing(r)
	case "watch":
		return c.watching(r)
	case "create":
		return c.create(r)
	case "update":
		return c.update(r)
	case "patch":
		return c.patch(r)
	case "delete":
		return c.delete(r)
	case "deletecollection":
		return c.deleteCollection(r)
	}
	return c.notAllowed()
}

// inNamespace says that the URL names a namespace; that of a Namespace is itself.
func (c *call) inNamespace(a rest.Any) bool {
	return c.t.namespace != "" && a.Kind != api.NamespaceKind
}

// acrossNamespaces says that a namespaced kind may be asked for without a namespace: lists.
func (c *call) acrossNamespaces(a rest.Any) bool {
	return a.Kind.Namespaced && c.t.name == "" && (c.t.verb == "list" || c.t.verb == "watch")
}

func (c *call) notAllowed() error {
	return apierrors.NewGenericServerResponse(http.StatusMethodNotAllowed, "", schema.GroupResource{}, "", "405: Method Not Allowed", 0, false)
}

// request is what the pipeline is asked, as far as URL and query tell.
func (c *call) request(a rest.Any) *rest.Request {
	key := api.Key{Namespace: c.t.namespace, Name: c.t.name}
	if !a.Kind.Namespaced {
		key.Namespace = ""
	}
	r := &rest.Request{Any: a, Key: key, Sub: c.t.sub, Warn: c.warn, Manager: manager(c.r)}
	if c.record != nil {
		r.Audit = c.record.Annotate
	}
	r.MayCreate = func(ctx context.Context) error {
		at := c.t.attributes(c.user, nil)
		at.Verb = "create"
		return c.s.authorize(ctx, at)
	}
	return r
}

// manager is the field manager that a client without fieldManager is taken for: the program's name.
func manager(r *http.Request) string {
	name, _, _ := strings.Cut(r.UserAgent(), "/")
	name = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, name)
	if name == "" {
		return "unknown"
	}
	if len(name) > metavalidation.FieldManagerMaxLength {
		name = name[:metavalidation.FieldManagerMaxLength]
	}
	return name
}

// warn adds a Warning header. The same text is sent once. Where all texts are longer than a client or proxy takes, each is cut off, as
// upstream does it.
func (c *call) warn(text string) {
	if slices.Contains(c.warnings, text) || len(c.warnings) >= maxWarnings {
		return
	}
	c.warnings = append(c.warnings, text)
	total := 0
	for _, t := range c.warnings {
		total += utf8.RuneCountInString(t)
	}
	if total <= mostWarned {
		c.addWarning(text)
		return
	}
	c.w.Header().Del("Warning")
	left := mostWarned
	for _, t := range c.warnings {
		if runes := []rune(t); len(runes) > cutWarning {
			t = string(runes[:cutWarning])
		}
		if left -= utf8.RuneCountInString(t); left < 0 {
			return
		}
		c.addWarning(t)
	}
}

func (c *call) addWarning(text string) {
	if h, err := net.NewWarningHeader(299, "-", text); err == nil {
		c.w.Header().Add("Warning", h)
	}
}

// What warnings may come to: how many, how many characters, and how many of each where all together have more.
const (
	maxWarnings = 64
	mostWarned  = 4096
	cutWarning  = 256
)

func (c *call) get(r *rest.Request) error {
	if !r.Any.Readable() {
		return c.notAllowed()
	}
	f, err := c.negotiate(r, r.Sub == "" || r.Sub == "status")
	if err != nil {
		return err
	}
	q := c.r.URL.Query()
	if v, given := q["export"]; given && v[0] != "0" && !strings.EqualFold(v[0], "false") {
		return apierrors.NewBadRequest("the export parameter, deprecated since v1.14, is no longer supported")
	}
	version := q.Get("resourceVersion")
	var e *store.Entry
	switch sub := r.Any.Sub(r.Sub); {
	case r.Sub == "scale":
		e, err = c.s.pipe.GetScale(c.r.Context(), r, version)
	case sub != nil && !sub.Allows(http.MethodGet):
		return c.notAllowed()
	default:
		e, err = c.s.pipe.Get(c.r.Context(), r, version)
	}
	if err != nil {
		return err
	}
	return c.entry(f, http.StatusOK, r.Any, e)
}

// listOptions reads and checks the options of a list, watch or deletecollection.
func listOptions(q url.Values) (*metav1.ListOptions, rest.Selection, error) {
	o := new(metav1.ListOptions)
	var sel rest.Selection
	if err := metav1.Convert_url_Values_To_v1_ListOptions(&q, o, nil); err != nil {
		return nil, sel, apierrors.NewBadRequest(err.Error())
	}
	var err error
	if o.LabelSelector != "" {
		if sel.Labels, err = labels.Parse(o.LabelSelector); err != nil {
			return nil, sel, apierrors.NewBadRequest(err.Error())
		}
	}
	if o.FieldSelector != "" {
		if sel.Fields, err = fields.ParseSelector(o.FieldSelector); err != nil {
			return nil, sel, apierrors.NewBadRequest(err.Error())
		}
	}
	internal := &internalversion.ListOptions{
		Watch: o.Watch, AllowWatchBookmarks: o.AllowWatchBookmarks, ResourceVersion: o.ResourceVersion,
		ResourceVersionMatch: o.ResourceVersionMatch, Limit: o.Limit, Continue: o.Continue, SendInitialEvents: o.SendInitialEvents,
	}
	if errs := internalvalidation.ValidateListOptions(internal, true); len(errs) > 0 {
		return nil, sel, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	return o, sel, nil
}

func (c *call) listing(r *rest.Request) error {
	if !r.Any.Readable() || r.Sub != "" {
		return c.notAllowed()
	}
	f, err := c.negotiate(r, true)
	if err != nil {
		return err
	}
	o, sel, err := listOptions(c.r.URL.Query())
	if err != nil {
		return err
	}
	page, err := c.s.pipe.List(c.r.Context(), r, rest.ListOptions{
		Selection: sel, Limit: o.Limit, Continue: o.Continue, Version: o.ResourceVersion, Match: o.ResourceVersionMatch,
	})
	if err != nil {
		return err
	}
	return c.list(f, r.Any, page)
}

// dryRun reads the dryRun option.
func dryRun(given []string) bool { return len(given) > 0 }

func (c *call) create(r *rest.Request) error {
	if r.Sub == "" && (r.Key.Name != "" || !r.Any.Stored() && r.Any.Readable()) {
		return c.notAllowed()
	}
	f, err := c.negotiate(r, r.Any.Stored()) // an answer that is only computed is no object that could be a row
	if err != nil {
		return err
	}
	var o metav1.CreateOptions
	q := c.r.URL.Query()
	if err := metav1.Convert_url_Values_To_v1_CreateOptions(&q, &o, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if errs := metavalidation.ValidateCreateOptions(&o); len(errs) > 0 {
		return badOptions("CreateOptions", errs)
	}
	r.DryRun, r.Options = dryRun(o.DryRun), &o
	if o.FieldManager != "" {
		r.Manager = o.FieldManager
	}
	body, err := c.decode(r, rest.Strictness(o.FieldValidation))
	if err != nil {
		return err
	}
	switch {
	case r.Sub != "":
		return c.post(f, r, body, &o)
	case !r.Any.Stored():
		out, err := c.s.pipe.Answer(c.r.Context(), r, body)
		if err != nil {
			return err
		}
		c.made(f, out)
		return nil
	}
	e, err := c.s.pipe.Create(c.r.Context(), r, body)
	if err != nil {
		return err
	}
	return c.entry(f, http.StatusCreated, r.Any, e)
}

func badOptions(kind string, errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
}

// post serves a creating subresource.
func (c *call) post(f format, r *rest.Request, body api.Object, o *metav1.CreateOptions) error {
	if sub := r.Any.Sub(r.Sub); sub == nil || sub.Create == nil {
		return c.notAllowed()
	}
	out, err := c.s.pipe.Post(c.r.Context(), r, body, o)
	if err != nil {
		return err
	}
	if out == nil {
		return fmt.Errorf("%v/%s answered nothing", r.Any.Kind, r.Sub)
	}
	c.made(f, out)
	return nil
}

// made answers what was posted but is not stored as it is. A Status is its own answer's code.
func (c *call) made(f format, out runtime.Object) {
	code := http.StatusCreated
	if st, ok := out.(*metav1.Status); ok {
		if st.Code != 0 {
			code = int(st.Code)
		}
		st.Kind, st.APIVersion = "Status", "v1"
	}
	c.write(f, code, out)
}

func (c *call) update(r *rest.Request) error {
	if r.Key.Name == "" || !c.updatable(r) {
		return c.notAllowed()
	}
	f, err := c.negotiate(r, true)
	if err != nil {
		return err
	}
	var o metav1.UpdateOptions
	q := c.r.URL.Query()
	if err := metav1.Convert_url_Values_To_v1_UpdateOptions(&q, &o, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if errs := metavalidation.ValidateUpdateOptions(&o); len(errs) > 0 {
		return badOptions("UpdateOptions", errs)
	}
	r.DryRun, r.Options = dryRun(o.DryRun), &o
	if o.FieldManager != "" {
		r.Manager = o.FieldManager
	}
	body, err := c.decode(r, rest.Strictness(o.FieldValidation))
	if err != nil {
		return err
	}
	e, created, err := c.s.pipe.Update(c.r.Context(), r, body)
	if err != nil {
		return err
	}
	return c.entry(f, changed(created), r.Any, e)
}

func changed(created bool) int {
	if created {
		return http.StatusCreated
	}
	return http.StatusOK
}

// updatable says whether PUT and PATCH are served here.
func (c *call) updatable(r *rest.Request) bool {
	sub := r.Any.Sub(r.Sub)
	return r.Any.Stored() && (sub == nil || sub.Allows(c.r.Method))
}

func (c *call) patch(r *rest.Request) error {
	if r.Key.Name == "" || !c.updatable(r) {
		return c.notAllowed()
	}
	f, err := c.negotiate(r, true)
	if err != nil {
		return err
	}
	media, _, _ := strings.Cut(c.r.Header.Get("Content-Type"), ";")
	kind := types.PatchType(media)
	known := []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType), string(types.ApplyCBORPatchType)}
	if r.Any.Custom() != nil && r.Sub != "scale" {
		known = []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.ApplyYAMLPatchType)}
	}
	if !slices.Contains(known, media) {
		return unknownBody(known)
	}
	var o metav1.PatchOptions
	q := c.r.URL.Query()
	if err := metav1.Convert_url_Values_To_v1_PatchOptions(&q, &o, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if errs := metavalidation.ValidatePatchOptions(&o, kind); len(errs) > 0 {
		return badOptions("PatchOptions", errs)
	}
	r.DryRun, r.Options = dryRun(o.DryRun), &o
	if o.FieldManager != "" {
		r.Manager = o.FieldManager
	}
	data, err := c.body()
	if err != nil {
		return err
	}
	if c.record != nil {
		text, _, err := api.YAMLToJSON(data) // an apply may be YAML; JSON stays what it is
		if err != nil {
			text = data
		}
		c.record.SentText(text)
	}
	p := rest.Patch{Type: kind, Data: data, Force: o.Force != nil && *o.Force, Strict: rest.Strictness(o.FieldValidation)}
	if p.Strict == "" {
		p.Strict = metav1.FieldValidationWarn
	}
	e, created, err := c.s.pipe.Patch(c.r.Context(), r, p)
	if err != nil {
		return err
	}
	return c.entry(f, changed(created), r.Any, e)
}

func (c *call) delete(r *rest.Request) error {
	if !r.Any.Stored() || r.Sub != "" {
		return c.notAllowed()
	}
	f, err := c.negotiate(r, true)
	if err != nil {
		return err
	}
	o, err := c.deleteOptions()
	if err != nil {
		return err
	}
	d, err := c.s.pipe.Delete(c.r.Context(), r, o)
	if err != nil {
		return err
	}
	code := http.StatusOK
	if !d.Gone && o.OrphanDependents != nil && !*o.OrphanDependents { // deprecated, but old clients send it
		code = http.StatusAccepted
	}
	if d.Answer {
		return c.entry(f, code, r.Any, d.Entry)
	}
	c.write(f, code, &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess,
		Details: &metav1.StatusDetails{
			Name: r.Key.Name, Group: r.Any.Kind.Group, Kind: r.Any.Kind.Plural, UID: d.Entry.Object.GetUID(),
		},
	})
	return nil
}

func (c *call) deleteCollection(r *rest.Request) error {
	if !r.Any.Stored() || r.Any.DeletedOneByOne() {
		return c.notAllowed()
	}
	f, err := c.negotiate(r, true)
	if err != nil {
		return err
	}
	lo, sel, err := listOptions(c.r.URL.Query())
	if err != nil {
		return err
	}
	o, err := c.deleteOptions()
	if err != nil {
		return err
	}
	page, err := c.s.pipe.DeleteCollection(c.r.Context(), r, o, rest.ListOptions{
		Selection: sel, Limit: lo.Limit, Continue: lo.Continue, Version: lo.ResourceVersion, Match: lo.ResourceVersionMatch,
	})
	if err != nil {
		return err
	}
	return c.list(f, r.Any, page)
}

// connect serves a stream or a proxied request.
func (c *call) connect(r *rest.Request, sub *rest.Subresource) error {
	if !slices.Contains(sub.Methods, c.r.Method) {
		return c.notAllowed()
	}
	// A stream that runs something is a creation, also where the client has to open it by GET.
	if c.t.verb == "get" && opens(c.t.sub) {
		at := c.t.attributes(c.user, nil)
		at.Verb = "create"
		if err := c.s.authorize(c.r.Context(), at); err != nil {
			return err
		}
	}
	if c.t.sub == "proxy" { // names scheme and port too: https:web:8443
		_, name, _, ok := net.SplitSchemeNamePort(r.Key.Name)
		if !ok {
			return apierrors.NewBadRequest(fmt.Sprintf("invalid proxy target %q", r.Key.Name))
		}
		r.Key.Name = name
	}
	e, err := c.s.pipe.Get(c.r.Context(), r, "")
	if err != nil {
		return err
	}
	if err := c.opened(r, e.Object); err != nil {
		return err
	}
	ctx, cancel := c.stream()
	defer cancel()
	c.w.Header().Del("Cache-Control")
	return sub.Connect(ctx, e.Object, c.w, c.r.WithContext(ctx))
}

// opened asks admission for what may be opened, and sets the request to that.
func (c *call) opened(r *rest.Request, parent api.Object) error {
	if c.t.sub != "proxy" {
		made, err := c.s.pipe.Connect(c.r.Context(), r, parent, c.r.URL.Query())
		if made != nil {
			c.r.URL.RawQuery = made.Encode()
		}
		return err
	}
	// Of a proxied request only the path is an option; its query is the other end's.
	rest := ""
	if c.t.rest != "" {
		rest = "/" + c.t.rest
	}
	made, err := c.s.pipe.Connect(c.r.Context(), r, parent, url.Values{"path": {rest}})
	if made != nil {
		c.r.URL.Path, c.r.URL.RawPath = strings.TrimSuffix(c.r.URL.Path, rest)+made.Get("path"), ""
	}
	return err
}

func opens(sub string) bool { return sub == "exec" || sub == "attach" || sub == "portforward" }
