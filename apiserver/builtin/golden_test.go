package builtin_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/store"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// cluster is the pipeline of all kinds over a store in memory.
type cluster struct {
	t     *testing.T
	store *store.Store
	pipe  *rest.Pipeline
	kinds map[string]rest.Any // by apiVersion and kind
	ctx   context.Context
	roles *authz.RBAC

	tokens *authn.Tokens
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return newClusterOf(t, netip.MustParsePrefix("10.43.0.0/24"))
}

// newClusterOf is a cluster with these ranges of Services.
func newClusterOf(t *testing.T, services ...netip.Prefix) *cluster {
	t.Helper()
	s := servertest.Store(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := authn.NewTokens(authn.TokenConfig{Key: key}, authn.Stored(s))
	if err != nil {
		t.Fatal(err)
	}
	c := (&cluster{t: t, store: s, tokens: tokens, roles: authz.NewRBAC(s)}).with(services...)
	for _, ns := range []string{"default", "kube-system"} {
		c.must(c.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}))
		c.must(c.create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "default"}}))
	}
	grows := true
	c.must(c.create(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}, Provisioner: "example.com/disk", AllowVolumeExpansion: &grows}))
	return c
}

// with is the same cluster, over the same store, with other ranges of Services.
func (c *cluster) with(services ...netip.Prefix) *cluster {
	next := *c
	next.kinds = map[string]rest.Any{}
	for _, a := range builtin.All(builtin.Deps{Store: c.store, Tokens: c.tokens, Authorizer: c.roles,
		Services: services, Reserved: []netip.Addr{netip.MustParseAddr("10.43.0.1")}, NodePorts: [2]int32{30000, 30003}}) {
		next.kinds[a.Kind.APIVersion()+" "+a.Kind.Kind] = a
	}
	next.pipe = rest.NewPipeline(c.store, admission.All(admission.Deps{Store: c.store, Roles: c.roles}))
	next.ctx = authn.WithUser(c.t.Context(), &authn.User{Name: "root", Groups: []string{authn.Masters, authn.Authenticated}})
	return &next
}

func (c *cluster) must(_ api.Object, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) any(o api.Object) rest.Any {
	k := api.KindOf(o)
	return c.kinds[k.APIVersion()+" "+k.Kind]
}

func (c *cluster) request(o api.Object, sub string) *rest.Request {
	return &rest.Request{Any: c.any(o), Key: api.KeyOf(o), Sub: sub, Manager: "test"}
}

func (c *cluster) create(o api.Object) (api.Object, error) {
	e, err := c.pipe.Create(c.ctx, c.request(o, ""), o)
	if err != nil {
		return nil, err
	}
	return e.Object, nil
}

func (c *cluster) update(o api.Object, sub string) (api.Object, error) {
	e, _, err := c.pipe.Update(c.ctx, c.request(o, sub), o)
	if err != nil {
		return nil, err
	}
	return e.Object, nil
}

// decode reads a document of any kind.
func (c *cluster) decode(doc map[string]any) api.Object {
	c.t.Helper()
	a, ok := c.kinds[fmt.Sprint(doc["apiVersion"], " ", doc["kind"])]
	if !ok {
		c.t.Fatalf("no kind %v %v", doc["apiVersion"], doc["kind"])
	}
	data, err := json.Marshal(doc)
	if err != nil {
		c.t.Fatal(err)
	}
	o := a.Kind.New()
	if strict, err := api.DecodeJSON(data, o); err != nil || len(strict) > 0 {
		c.t.Fatalf("decode %s: %v %v", data, strict, err)
	}
	return o
}

func asMap(t *testing.T, o any) map[string]any {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// merge applies a JSON merge patch.
func merge(into, patch map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range into {
		out[k] = v
	}
	for k, v := range patch {
		sub, isMap := v.(map[string]any)
		old, wasMap := out[k].(map[string]any)
		switch {
		case v == nil:
			delete(out, k)
		case isMap && wasMap:
			out[k] = merge(old, sub)
		default:
			out[k] = v
		}
	}
	return out
}

func readYAML(t *testing.T, text string) map[string]any {
	t.Helper()
	m := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &m); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return m
}

var (
	header  = regexp.MustCompile(`(?m)^==== `)
	uids    = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	tokens  = regexp.MustCompile(`kube-api-access-\w{5}`) // volumes of them
	ages    = regexp.MustCompile(`^([0-9.]+[smhdy])+$|^\d{4}-\d\d-\d\dT`)
	changes = regexp.MustCompile(`(?m)^--- ?(\w*)\n`)
)

// TestGolden creates and updates objects and compares what is wrong with them with the golden text.
//
// A file opens with a document. Each case, after "==== title", is a merge patch of it that is created. Further patches after
// "---", or "--- status", are updates of what the API answered. After "----" stands what is wrong, one problem a line, or "ok"; after
// a title that opens with "show" the object, with "row" what kubectl get -o wide prints of it.
func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sections := header.Split(string(data), -1)
			base := readYAML(t, sections[0])
			out := sections[0]
			for _, s := range sections[1:] {
				title, body, _ := strings.Cut(s, "\n")
				in, want, _ := strings.Cut(body, "----\n")
				got := ""
				// Each case has a cluster of its own.
				t.Run(title, func(t *testing.T) { got = strings.TrimRight(runCase(newCluster(t), title, base, in), "\n") + "\n" })
				if want = strings.TrimRight(want, "\n") + "\n"; !*update && got != want {
					t.Errorf("%s\ngot:\n%s\nwant:\n%s", title, got, want)
				}
				out += "==== " + title + "\n" + in + "----\n" + got + "\n"
			}
			if *update {
				if err := os.WriteFile(file, []byte(strings.TrimRight(out, "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func runCase(c *cluster, title string, base map[string]any, in string) string {
	first := in
	at := changes.FindAllStringSubmatchIndex(in, -1)
	if len(at) > 0 {
		first = in[:at[0][0]]
	}
	now, err := c.create(c.decode(merge(base, readYAML(c.t, first))))
	for i, m := range at {
		if err != nil {
			return "not created: " + problems(err)
		}
		end := len(in)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		doc := merge(asMap(c.t, now), readYAML(c.t, in[m[1]:end]))
		var next api.Object
		if next, err = c.update(c.decode(doc), in[m[2]:m[3]]); err == nil {
			now = next
		} else if i+1 < len(at) {
			return fmt.Sprintf("update %d: %s", i+1, problems(err))
		}
	}
	if err != nil {
		return problems(err)
	}
	switch word, _, _ := strings.Cut(title, " "); word {
	case "show":
		return shown(c.t, now)
	case "row":
		return row(c, now)
	}
	return "ok\n"
}

// row is what kubectl get prints of an object, with ages that do not differ from run to run.
func row(c *cluster, o api.Object) string {
	var cells []string
	for _, v := range c.row(o) {
		text := fmt.Sprint(v)
		if ages.MatchString(text) {
			text = "AGE"
		}
		cells = append(cells, uids.ReplaceAllString(text, "UID"))
	}
	return strings.Join(cells, " | ") + "\n"
}

// shown is an object without what differs from run to run.
func shown(t *testing.T, o api.Object) string {
	t.Helper()
	m := asMap(t, o)
	meta := m["metadata"].(map[string]any)
	uid, _ := meta["uid"].(string)
	for _, k := range []string{"uid", "creationTimestamp", "resourceVersion", "managedFields"} {
		delete(meta, k)
	}
	data, err := yaml.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	if uid != "" {
		text = strings.ReplaceAll(text, uid, "UID")
	}
	text = regexp.MustCompile(`(lastPhaseTransitionTime|lastTransitionTime|timeAdded): .*`).ReplaceAllString(text, "$1: NOW")
	return tokens.ReplaceAllString(text, "kube-api-access-XXXXX")
}

// problems lists the causes of an error, or its text where it has none.
func problems(err error) string {
	var status *apierrors.StatusError
	if !errors.As(err, &status) {
		return err.Error() + "\n"
	}
	d := status.ErrStatus.Details
	if d == nil || len(d.Causes) == 0 || status.ErrStatus.Reason != metav1.StatusReasonInvalid {
		return string(status.ErrStatus.Reason) + ": " + status.ErrStatus.Message + "\n"
	}
	var b strings.Builder
	for _, c := range d.Causes {
		fmt.Fprintf(&b, "%s: %s\n", c.Field, tokens.ReplaceAllString(uids.ReplaceAllString(c.Message, "UID"), "kube-api-access-XXXXX"))
	}
	return b.String()
}
