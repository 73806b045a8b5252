package apiserver

import (
	"cmp"
	"crypto/sha512"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"sync"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/apiserver/aggregator"
	"github.com/yare-dev/yare/apiserver/rest"
)

// discovery tells clients which kinds there are: /api, /apis and what is below. It is made on the first request.
type discovery struct {
	kinds []rest.Any

	once   sync.Once
	groups []group // in the order of groupOrder

	mu    sync.Mutex
	whole map[string]answer // the aggregated form, by path and encoding
	with  *aggregator.State // what is served elsewhere, in whole
}

// group is an API group with its versions.
type group struct {
	name     string
	versions []groupVersion
}

type groupVersion struct {
	schema.GroupVersion
	kinds []rest.Any
	// elsewhere is the APIService by which another server serves the version.
	elsewhere *aggregator.Service
}

// answer is an encoded document with its ETag.
type answer struct {
	body []byte
	tag  string
}

func newDiscovery(kinds []rest.Any) *discovery {
	return &discovery{kinds: kinds, whole: map[string]answer{}}
}

func (d *discovery) load() {
	for _, a := range d.kinds {
		gi := slices.IndexFunc(d.groups, func(g group) bool { return g.name == a.Kind.Group })
		if gi < 0 {
			gi = len(d.groups)
			d.groups = append(d.groups, group{name: a.Kind.Group})
		}
		g := &d.groups[gi]
		vi := slices.IndexFunc(g.versions, func(v groupVersion) bool { return v.Version == a.Kind.Version })
		if vi < 0 {
			vi = len(g.versions)
			g.versions = append(g.versions, groupVersion{GroupVersion: a.Kind.GroupVersion()})
		}
		g.versions[vi].kinds = append(g.versions[vi].kinds, a)
	}
	slices.SortStableFunc(d.groups, func(a, b group) int { return cmp.Compare(rank(a.name), rank(b.name)) })
	for _, g := range d.groups {
		slices.SortStableFunc(g.versions, func(a, b groupVersion) int {
			return version.CompareKubeAwareVersionStrings(b.Version, a.Version)
		})
	}
}

// groupOrder is upstream's order of the groups, by which clients choose between kinds of one name. Others come after.
var groupOrder = [...]string{"", "apiregistration.k8s.io", "apps", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling",
	"batch", "certificates.k8s.io", "networking.k8s.io", "policy", "rbac.authorization.k8s.io", "storage.k8s.io",
	"admissionregistration.k8s.io", "apiextensions.k8s.io", "scheduling.k8s.io", "coordination.k8s.io", "node.k8s.io", "discovery.k8s.io",
	"resource.k8s.io", "flowcontrol.apiserver.k8s.io", "internal.apiserver.k8s.io", "storagemigration.k8s.io"}

func rank(group string) int {
	if i := slices.Index(groupOrder[:], group); i >= 0 {
		return i
	}
	return len(groupOrder)
}

// serve answers a path below /api or /apis that names no object.
func (d *discovery) serve(c *call, root, rest string) error {
	d.once.Do(d.load)
	elsewhere := c.s.deps.Aggregator.State()
	if rest == "" {
		c.w.Header().Set("Vary", "Accept")
		if f, typ, ok := aggregated(c.r); ok {
			return d.aggregate(c, root, f, typ, elsewhere)
		}
	}
	f, err := negotiate(c.r, false)
	if err != nil {
		return err
	}
	groups := merged(d.groups, elsewhere, byService)
	o := d.find(c, groups, root, rest)
	if o == nil {
		name, number, _ := strings.Cut(rest, "/")
		if number != "" && !strings.Contains(number, "/") && slices.ContainsFunc(groups, func(g group) bool { return g.name != "" && g.name == name }) {
			return apierrors.NewGenericServerResponse(http.StatusNotFound, c.t.verb, schema.GroupResource{}, "", "", 0, false)
		}
		return c.nothing()
	}
	c.write(f, http.StatusOK, o)
	return nil
}

// find returns the document of the groups at the path, nil where there is none.
func (d *discovery) find(c *call, groups []group, root, rest string) runtime.Object {
	name, number, _ := strings.Cut(rest, "/")
	if root == "api" {
		name, number = "", rest
		if rest == "" {
			return d.coreVersions(c.r.Host)
		}
	} else if rest == "" {
		l := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
		for _, g := range groups {
			if g.name != "" {
				l.Groups = append(l.Groups, g.document())
			}
		}
		return l
	}
	for _, g := range groups {
		if g.name != name || (root == "apis" && name == "") {
			continue
		}
		if number == "" {
			doc := g.document()
			doc.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
			return &doc
		}
		for _, v := range g.versions {
			if v.Version == number {
				return v.document()
			}
		}
	}
	return nil
}

func (d *discovery) coreVersions(host string) runtime.Object {
	vs := &metav1.APIVersions{
		TypeMeta:                   metav1.TypeMeta{Kind: "APIVersions"},
		ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: host}},
	}
	for _, g := range d.groups {
		for _, v := range g.versions {
			if g.name == "" {
				vs.Versions = append(vs.Versions, v.Version)
			}
		}
	}
	return vs
}

func (g group) document() metav1.APIGroup {
	doc := metav1.APIGroup{Name: g.name}
	for _, v := range g.versions {
		doc.Versions = append(doc.Versions, metav1.GroupVersionForDiscovery{GroupVersion: v.String(), Version: v.Version})
	}
	doc.PreferredVersion = doc.Versions[0]
	return doc
}

func (v groupVersion) document() *metav1.APIResourceList {
	l := &metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: v.String(),
	}
	byName := func(a, b rest.Any) int { return strings.Compare(a.Kind.Plural, b.Kind.Plural) }
	for _, a := range slices.SortedFunc(slices.Values(v.kinds), byName) {
		l.APIResources = append(l.APIResources, a.APIResources()...)
	}
	return l
}

// aggregated says whether the client asks for everything in one document, which is served as v2 only.
func aggregated(r *http.Request) (format, string, bool) {
	for _, a := range parseAccept(strings.Join(r.Header["Accept"], ",")) {
		for _, enc := range a.offers() {
			switch {
			case enc == asYAML:
			case a.params["as"] == "":
				return format{}, "", false // what the client likes best is the old form
			case a.params["g"] == "apidiscovery.k8s.io" && a.params["v"] == "v2" && a.params["as"] == "APIGroupDiscoveryList":
				return format{encoding: enc}, enc.String() + ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", true
			}
		}
	}
	return format{}, "", false
}

func (d *discovery) aggregate(c *call, root string, f format, typ string, elsewhere *aggregator.State) error {
	a, err := d.document(root, f, elsewhere)
	if err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("ETag", a.tag)
	h.Set("Cache-Control", "public")
	if slices.Contains(c.r.Header["If-None-Match"], a.tag) {
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", typ)
	c.w.WriteHeader(http.StatusOK)
	writeAll(c.w, a.body)
	return nil
}

func (d *discovery) document(root string, f format, elsewhere *aggregator.State) (answer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.with != elsewhere {
		clear(d.whole)
		d.with = elsewhere
	}
	key := root + f.encoding.String()
	if a, ok := d.whole[key]; ok {
		return a, nil
	}
	l := &apidiscoveryv2.APIGroupDiscoveryList{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/v2"},
		Items:    []apidiscoveryv2.APIGroupDiscovery{},
	}
	for _, g := range merged(d.groups, elsewhere, byGroup) {
		if (g.name == "") == (root == "api") {
			l.Items = append(l.Items, g.aggregated(elsewhere))
		}
	}
	b, err := f.encode(l)
	if err != nil {
		return answer{}, err
	}
	sum := sha512.Sum512(b)
	a := answer{b, `"` + strings.ToUpper(hex.EncodeToString(sum[:])) + `"`}
	d.whole[key] = a
	return a, nil
}

func (g group) aggregated(elsewhere *aggregator.State) apidiscoveryv2.APIGroupDiscovery {
	doc := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
	for _, v := range g.versions {
		if v.elsewhere != nil {
			doc.Versions = append(doc.Versions, elsewhere.Discovery(v.elsewhere))
			continue
		}
		dv := apidiscoveryv2.APIVersionDiscovery{Version: v.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
		for _, a := range v.kinds {
			dv.Resources = append(dv.Resources, describe(a))
		}
		slices.SortFunc(dv.Resources, func(a, b apidiscoveryv2.APIResourceDiscovery) int { return strings.Compare(a.Resource, b.Resource) })
		doc.Versions = append(doc.Versions, dv)
	}
	return doc
}

func describe(a rest.Any) apidiscoveryv2.APIResourceDiscovery {
	all := a.APIResources()
	main := all[0]
	d := apidiscoveryv2.APIResourceDiscovery{
		Resource: main.Name, SingularResource: main.SingularName, Verbs: main.Verbs, Scope: apidiscoveryv2.ScopeCluster,
		ShortNames: main.ShortNames, Categories: main.Categories,
		ResponseKind: &metav1.GroupVersionKind{Kind: main.Kind}, // of the group and version that it stands in
	}
	if a.Custom() != nil { // which upstream names all the same
		d.ResponseKind.Group, d.ResponseKind.Version = a.Kind.Group, a.Kind.Version
	}
	if main.Namespaced {
		d.Scope = apidiscoveryv2.ScopeNamespace
	}
	for _, s := range all[1:] {
		kind := &metav1.GroupVersionKind{Group: s.Group, Version: s.Version, Kind: s.Kind}
		if a.Custom() != nil && kind.Version == "" {
			kind.Group, kind.Version = a.Kind.Group, a.Kind.Version
		}
		d.Subresources = append(d.Subresources, apidiscoveryv2.APISubresourceDiscovery{
			Subresource: strings.TrimPrefix(s.Name, main.Name+"/"), Verbs: s.Verbs, ResponseKind: kind,
		})
	}
	return d
}
