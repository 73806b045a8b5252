package aggregator

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Bounds of what is read of a server's documents.
const (
	fetchTimeout = 5 * time.Second
	maxDocument  = 64 << 20 // bytes
)

const wholeDiscovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

// discover asks the server of svc which kinds its version has. Where it cannot be asked, what it said before is marked stale.
func (a *Aggregator) discover(ctx context.Context, svc *Service) error {
	a.mu.Lock()
	known, ok := a.discovery[svc.Name]
	a.mu.Unlock()
	if !ok || known.uid != string(svc.UID) {
		known = told{uid: string(svc.UID)}
	}
	version, tag, err := a.fetchDiscovery(ctx, svc, known)
	if err != nil {
		a.stale(svc)
		return err
	}
	version.Freshness = apidiscoveryv2.DiscoveryFreshnessCurrent
	a.tell(svc.Name, told{known.uid, version, tag})
	return nil
}

// stale marks what the server of svc said as old.
func (a *Aggregator) stale(svc *Service) {
	a.mu.Lock()
	known, ok := a.discovery[svc.Name]
	a.mu.Unlock()
	if ok && known.uid == string(svc.UID) && known.version.Freshness != apidiscoveryv2.DiscoveryFreshnessStale {
		known.version.Freshness = apidiscoveryv2.DiscoveryFreshnessStale
		a.tell(svc.Name, known)
	}
}

// tell publishes what was said, if that is new.
func (a *Aggregator) tell(name string, now told) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was, ok := a.discovery[name]
	a.discovery[name] = now
	if !ok || was.uid != now.uid || !sameVersion(was.version, now.version) {
		a.look()
	}
}

func sameVersion(a, b apidiscoveryv2.APIVersionDiscovery) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// forget drops what is known of an APIService that is remote no more.
func (a *Aggregator) forget(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.discovery, name)
	delete(a.documents, name)
	a.meter.forget(name)
}

// fetchDiscovery reads the document of all kinds, or where the server has none that of the one version.
func (a *Aggregator) fetchDiscovery(ctx context.Context, svc *Service, known told) (v apidiscoveryv2.APIVersionDiscovery, tag string, err error) {
	text, h, err := a.fetch(ctx, svc, "/apis", wholeDiscovery, known.tag)
	v = apidiscoveryv2.APIVersionDiscovery{Version: svc.Spec.Version}
	switch {
	case err != nil && code(err) == http.StatusServiceUnavailable:
		return v, "", err
	case err == nil && text == nil: // as it was
		return known.version, known.tag, nil
	case err == nil && isWhole(h.Get("Content-Type")):
		var l apidiscoveryv2.APIGroupDiscoveryList
		if err := json.Unmarshal(text, &l); err != nil {
			return v, "", fmt.Errorf("read the discovery document of %s: %w", svc.Name, err)
		}
		for _, g := range l.Items {
			for _, got := range g.Versions {
				if g.Name == svc.Spec.Group && got.Version == svc.Spec.Version {
					complete(&got)
					v = got
				}
			}
		}
		return v, h.Get("ETag"), nil
	}
	text, _, err = a.fetch(ctx, svc, "/apis/"+svc.Spec.Group+"/"+svc.Spec.Version, "application/json", "")
	if err != nil {
		return v, "", err
	}
	var l metav1.APIResourceList
	if err := json.Unmarshal(text, &l); err != nil {
		return v, "", fmt.Errorf("read the kinds of %s: %w", svc.Name, err)
	}
	v.Resources = described(l.APIResources)
	return v, "", nil
}

func isWhole(contentType string) bool {
	_, p, err := mime.ParseMediaType(contentType)
	return err == nil && p["g"] == "apidiscovery.k8s.io" && p["v"] == "v2" && p["as"] == "APIGroupDiscoveryList"
}

// complete gives each resource a kind: clients of v0.26 take it for granted.
func complete(v *apidiscoveryv2.APIVersionDiscovery) {
	for i := range v.Resources {
		r := &v.Resources[i]
		if r.ResponseKind == nil {
			r.ResponseKind = &metav1.GroupVersionKind{}
		}
		for j := range r.Subresources {
			if r.Subresources[j].ResponseKind == nil {
				r.Subresources[j].ResponseKind = &metav1.GroupVersionKind{}
			}
		}
	}
}

// described is the old form of a version's kinds in the new one, in which subresources belong to their resource.
func described(all []metav1.APIResource) []apidiscoveryv2.APIResourceDiscovery {
	out := map[string]*apidiscoveryv2.APIResourceDiscovery{}
	of := func(r *metav1.APIResource, name string) *apidiscoveryv2.APIResourceDiscovery {
		if out[name] == nil {
			scope := apidiscoveryv2.ScopeCluster
			if r.Namespaced {
				scope = apidiscoveryv2.ScopeNamespace
			}
			out[name] = &apidiscoveryv2.APIResourceDiscovery{Resource: name, Scope: scope, ResponseKind: &metav1.GroupVersionKind{}}
		}
		return out[name]
	}
	for i := range all {
		r := &all[i]
		kind := &metav1.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
		name, sub, isSub := strings.Cut(r.Name, "/")
		d := of(r, name)
		if isSub {
			d.Subresources = append(d.Subresources, apidiscoveryv2.APISubresourceDiscovery{Subresource: sub, ResponseKind: kind, Verbs: r.Verbs})
			continue
		}
		d.ResponseKind, d.SingularResource, d.Verbs, d.ShortNames, d.Categories = kind, r.SingularName, r.Verbs, r.ShortNames, r.Categories
	}
	var list []apidiscoveryv2.APIResourceDiscovery
	for _, name := range slices.Sorted(maps.Keys(out)) {
		list = append(list, *out[name])
	}
	return list
}

// statusError is an answer that is none of success.
type statusError struct {
	url  string
	code int
}

func (e *statusError) Error() string { return fmt.Sprintf("bad status from %s: %d", e.url, e.code) }

func code(err error) int {
	if e, ok := err.(*statusError); ok {
		return e.code
	}
	return 0
}

// fetch reads a document of the server of svc. The text is nil where it is still what has the tag.
func (a *Aggregator) fetch(ctx context.Context, svc *Service, path, accept, tag string) ([]byte, http.Header, error) {
	ctx, stop := context.WithTimeout(ctx, fetchTimeout)
	defer stop()
	header := http.Header{"Accept": {accept}}
	if tag != "" {
		header.Set("If-None-Match", tag)
	}
	answer, at, err := a.get(ctx, svc, path, header)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusNotModified && tag != "":
		return nil, answer.Header, nil
	case answer.StatusCode != http.StatusOK:
		return nil, nil, &statusError{at.String(), answer.StatusCode}
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxDocument+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", at, err)
	}
	if len(text) > maxDocument {
		return nil, nil, fmt.Errorf("%s is larger than %d bytes", at, maxDocument)
	}
	return text, answer.Header, nil
}
