package apiserver

import (
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
)

// target is what a request's URL names and what is to be done to it.
type target struct {
	verb      string
	isObject  bool // an API object or collection; otherwise only path is set
	group     string
	version   string
	plural    string
	sub       string
	namespace string
	name      string
	rest      string // the path after the subresource, for proxies, without the leading slash
	path      string
	watch     bool
	watchOnly bool // the path is of the form /watch/..., which nothing but a watch is asked by
}

// parse reads the URL. It accepts every path; what does not look like an API object is a plain path.
func parse(r *http.Request) *target {
	t := &target{path: r.URL.Path, verb: strings.ToLower(r.Method)}
	segments := split(r.URL.Path)
	switch {
	case len(segments) >= 3 && segments[0] == "api":
		t.version, segments = segments[1], segments[2:]
	case len(segments) >= 4 && segments[0] == "apis":
		t.group, t.version, segments = segments[1], segments[2], segments[3:]
	default:
		return t
	}
	t.isObject = true
	if len(segments) > 1 && segments[0] == "watch" { // the form before ?watch=1, still served
		t.watch, t.watchOnly, segments = true, true, segments[1:]
	}
	// namespaces/x/pods is a collection in x; namespaces/x/status is a part of the Namespace x.
	if segments[0] == "namespaces" && len(segments) > 2 && segments[2] != "status" && segments[2] != "finalize" {
		t.namespace, segments = segments[1], segments[2:]
	}
	t.plural = segments[0]
	if len(segments) > 1 {
		t.name = segments[1]
	}
	if len(segments) > 2 {
		t.sub = segments[2]
	}
	if len(segments) > 3 {
		t.rest = strings.Join(segments[3:], "/")
	}
	if t.plural == "namespaces" && t.group == "" {
		t.namespace = t.name // as upstream attributes it; access to a Namespace can be granted inside of it
	}
	t.setVerb(r.Method, r.URL.Query())
	return t
}

func split(path string) []string {
	path = strings.Trim(path, "/")
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

func (t *target) setVerb(method string, q url.Values) {
	if w := q["watch"]; len(w) > 0 && t.name == "" && w[0] != "0" && !strings.EqualFold(w[0], "false") {
		t.watch = true // of one object it is /watch/... that asks; the parameter means nothing to a get
	}
	switch method {
	case http.MethodGet, http.MethodHead:
		switch {
		case t.watch && t.sub == "":
			t.verb = "watch"
		case t.name == "":
			t.verb = "list"
		default:
			t.verb = "get"
		}
	case http.MethodPost:
		t.verb = "create"
	case http.MethodPut:
		t.verb = "update"
	case http.MethodPatch:
		t.verb = "patch"
	case http.MethodDelete:
		t.verb = "delete"
		if t.name == "" {
			t.verb = "deletecollection"
		}
	}
	if t.verb != "watch" {
		t.watch = false
	}
}

// attributes are what the authorizer is asked about. A list or watch of one name is decided like a get of it.
func (t *target) attributes(u *authn.User, q url.Values) *authz.Attributes {
	if !t.isObject {
		return &authz.Attributes{User: u, Verb: t.verb, Path: t.path}
	}
	a := &authz.Attributes{
		User: u, Verb: t.verb, Group: t.group, Version: t.version, Resource: t.plural, Subresource: t.sub,
		Namespace: t.namespace, Name: t.name,
	}
	if a.Name == "" && (t.verb == "list" || t.verb == "watch" || t.verb == "deletecollection") {
		if sel, err := fields.ParseSelector(q.Get("fieldSelector")); err == nil {
			a.Fields = sel
			if name, ok := sel.RequiresExactMatch("metadata.name"); ok && t.verb != "deletecollection" && len(path.IsValidPathSegmentName(name)) == 0 {
				a.Name = name
			}
		}
		if sel, err := labels.Parse(q.Get("labelSelector")); err == nil {
			a.Labels = sel
		}
	}
	return a
}
