package bootstrap

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/client"
)

type late struct{ client.Client }

func server(t testing.TB) client.Client { return serverOf(t, netip.MustParsePrefix("10.43.0.0/16")) }

// serverOf has these ranges of Services.
func serverOf(t testing.TB, services ...netip.Prefix) client.Client {
	t.Helper()
	st := servertest.Store(t)
	rbac := authz.NewRBAC(st)
	self := &late{}
	s, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: st, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Authorizer: rbac,
		Resources: builtin.All(builtin.Deps{Store: st, Client: self, Authorizer: rbac, Services: services,
			Reserved: []netip.Addr{services[0].Addr().Next()}})})
	if err != nil {
		t.Fatal(err)
	}
	self.Client = s.ClientAs(&authn.User{Name: "system:apiserver", Groups: []string{authn.Masters}})
	return self.Client
}

// start runs the component until it is ready.
func start(t testing.TB, c client.Client) (stop func()) {
	t.Helper()
	return startOf(t, c, netip.MustParseAddrPort("192.0.2.1:6443"), netip.MustParsePrefix("10.43.0.0/16"))
}

func startOf(t testing.TB, c client.Client, at netip.AddrPort, services ...netip.Prefix) (stop func()) {
	t.Helper()
	b := New(Config{APIServer: at, APIService: services[0].Addr().Next(), Services: services, ClientCA: []byte(authority(t, time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)))}, c,
		slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- b.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func get[T api.Object](t testing.TB, c client.Client, namespace, name string) T {
	t.Helper()
	o, err := client.Get[T](t.Context(), c, api.Key{Namespace: namespace, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// mended returns the ConfigMap once what was done to it has been seen to.
func mended(t testing.TB, c client.Client, m api.Key) *corev1.ConfigMap {
	t.Helper()
	time.Sleep(time.Second)
	synctest.Wait()
	return get[*corev1.ConfigMap](t, c, m.Namespace, m.Name)
}

func TestBootstrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		stop := start(t, c)
		for _, ns := range Namespaces() {
			get[*corev1.Namespace](t, c, "", ns)
		}
		get[*rbacv1.ClusterRole](t, c, "", "cluster-admin")
		s := get[*corev1.Service](t, c, metav1.NamespaceDefault, "kubernetes")
		if s.Spec.ClusterIP != "10.43.0.1" || s.Spec.Ports[0].Port != 443 || s.Spec.Ports[0].TargetPort.IntValue() != 6443 || s.Spec.Selector != nil {
			t.Errorf("%+v", s.Spec)
		}
		slice := get[*discoveryv1.EndpointSlice](t, c, metav1.NamespaceDefault, "kubernetes")
		if slice.Endpoints[0].Addresses[0] != "192.0.2.1" || *slice.Ports[0].Port != 6443 {
			t.Errorf("%+v", slice)
		}

		// What somebody changes or deletes is mended.
		if _, err := client.Mutate(t.Context(), c, s, "", func(s *corev1.Service) { s.Spec.Ports[0].Port = 444 }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s = get[*corev1.Service](t, c, metav1.NamespaceDefault, "kubernetes")
		if s.Spec.Ports[0].Port != 443 {
			t.Errorf("not mended: %+v", s.Spec.Ports)
		}
		if err := c.Delete(t.Context(), s, client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if again := get[*corev1.Service](t, c, metav1.NamespaceDefault, "kubernetes"); again.UID == s.UID {
			t.Error("not deleted")
		}
		stop()
	})
}

// Priority levels and flow schemas are as upstream's, unless somebody took one into their own hands.
func TestFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		stop := start(t, c)
		level := func(name string) *flowcontrolv1.PriorityLevelConfiguration {
			return get[*flowcontrolv1.PriorityLevelConfiguration](t, c, "", name)
		}
		change := func(name, note string, shares int32) {
			t.Helper()
			_, err := client.Mutate(t.Context(), c, level(name), "", func(l *flowcontrolv1.PriorityLevelConfiguration) {
				if note != "" {
					l.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] = note
				}
				l.Spec.Limited.NominalConcurrencyShares = &shares
			})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // writes that meet each other wait
			synctest.Wait()
		}
		change("system", "", 7)
		if n := *level("system").Spec.Limited.NominalConcurrencyShares; n != 30 {
			t.Errorf("system has %d shares", n)
		}
		change("node-high", "false", 7)
		if n := *level("node-high").Spec.Limited.NominalConcurrencyShares; n != 7 {
			t.Errorf("node-high has %d shares", n)
		}
		exempt := get[*flowcontrolv1.FlowSchema](t, c, "", "exempt")
		if err := c.Delete(t.Context(), exempt, client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		get[*flowcontrolv1.FlowSchema](t, c, "", "exempt")
		former := level("system").DeepCopy()
		former.ObjectMeta = metav1.ObjectMeta{Name: "former", Annotations: map[string]string{flowcontrolv1.AutoUpdateAnnotationKey: "true"}}
		if _, err := client.Create(t.Context(), c, former); err != nil {
			t.Fatal(err)
		}
		stop()
		start(t, c)()
		if _, err := client.Get[*flowcontrolv1.PriorityLevelConfiguration](t.Context(), c, api.Key{Name: "former"}); !apierrors.IsNotFound(err) {
			t.Errorf("a level of a former release: %v", err)
		}
	})
}

// A second start finds everything and writes nothing.
func TestBootstrapTwiceWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		revisions := func() (all [11]api.Revision) {
			for i, k := range []*api.Kind{api.NamespaceKind, api.ServiceKind, api.ClusterRoleKind, api.EndpointSliceKind,
				api.PriorityClassKind, api.FlowSchemaKind, api.PriorityLevelConfigurationKind,
				api.ServiceCIDRKind, api.IPAddressKind, api.APIServiceKind, api.ConfigMapKind} {
				os, _, err := c.List(t.Context(), k, client.Query{})
				if err != nil || len(os) == 0 {
					t.Fatal(len(os), err)
				}
				for _, o := range os {
					rev, err := api.ParseRevision(o.GetResourceVersion())
					if err != nil {
						t.Fatal(err)
					}
					all[i] = max(all[i], rev)
				}
			}
			return all
		}
		once := func() {
			stop := start(t, c)
			synctest.Wait()
			stop()
		}
		once()
		before := revisions()
		once()
		if after := revisions(); after != before {
			t.Errorf("%v before, %v after", before, after)
		}
	})
}

// TestDangling makes a FlowSchema before its level.
func TestDangling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		stop := start(t, c)
		defer stop()
		synctest.Wait()
		reason := func(name string) string {
			time.Sleep(time.Minute) // writes that meet each other are tried again
			s := get[*flowcontrolv1.FlowSchema](t, c, "", name)
			if len(s.Status.Conditions) != 1 {
				return ""
			}
			return string(s.Status.Conditions[0].Status) + " " + s.Status.Conditions[0].Reason
		}
		if got := reason("catch-all"); got != "False Found" {
			t.Errorf("catch-all: %q", got)
		}
		mine := get[*flowcontrolv1.FlowSchema](t, c, "", "global-default").DeepCopy()
		mine.ObjectMeta, mine.Status = metav1.ObjectMeta{Name: "mine"}, flowcontrolv1.FlowSchemaStatus{}
		mine.Spec.PriorityLevelConfiguration.Name = "mine"
		if _, err := c.Create(t.Context(), mine); err != nil {
			t.Fatal(err)
		}
		if got := reason("mine"); got != "True NotFound" {
			t.Errorf("without a level: %q", got)
		}
		level := get[*flowcontrolv1.PriorityLevelConfiguration](t, c, "", "global-default").DeepCopy()
		level.ObjectMeta, level.Status = metav1.ObjectMeta{Name: "mine"}, flowcontrolv1.PriorityLevelConfigurationStatus{}
		if _, err := c.Create(t.Context(), level); err != nil {
			t.Fatal(err)
		}
		if got := reason("mine"); got != "False Found" {
			t.Errorf("with a level: %q", got)
		}
	})
}

// Who waits for a name has it when its holder is gone, or takes another, also when that happened while nobody looked.
func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		stop := start(t, c)
		make := func(plural, short string) *apiextensionsv1.CustomResourceDefinition {
			d, err := client.Create(t.Context(), c, &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: plural + ".example.com"},
				Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Scope: "Cluster",
					Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: plural, Singular: plural[:3], Kind: "Foo", ShortNames: []string{short}},
					Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
						Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}}}}}})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		expect := func(plural string, accepted bool) {
			t.Helper()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			d := get[*apiextensionsv1.CustomResourceDefinition](t, c, "", plural+".example.com")
			if got := apihelpers.IsCRDConditionTrue(d, apiextensionsv1.NamesAccepted); got != accepted || (d.Status.AcceptedNames.Kind == "Foo") != accepted {
				t.Errorf("%s: %+v", plural, d.Status)
			}
		}
		// Who serves definitions lets them go when what they define is deleted.
		remove := func(plural string) {
			t.Helper()
			if err := c.Delete(t.Context(), get[*apiextensionsv1.CustomResourceDefinition](t, c, "", plural+".example.com"), client.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			_, err := client.Mutate(t.Context(), c, get[*apiextensionsv1.CustomResourceDefinition](t, c, "", plural+".example.com"), "status",
				func(d *apiextensionsv1.CustomResourceDefinition) { d.Finalizers = nil })
			if err != nil {
				t.Fatal(err)
			}
		}
		make("foos", "f")
		make("bars", "b")
		expect("foos", true)
		expect("bars", false)
		remove("foos")
		expect("bars", true)
		make("foos", "f")
		expect("foos", false)
		bars := get[*apiextensionsv1.CustomResourceDefinition](t, c, "", "bars.example.com")
		if _, err := client.Mutate(t.Context(), c, bars, "", func(d *apiextensionsv1.CustomResourceDefinition) {
			d.Spec.Names.Kind, d.Spec.Names.ListKind = "Bar", "BarList"
		}); err != nil {
			t.Fatal(err)
		}
		expect("foos", true)
		make("quxes", "q")
		expect("quxes", false)
		stop()
		remove("foos")
		expect("quxes", false)
		stop = start(t, c)
		expect("quxes", true)
		stop()
	})
}
