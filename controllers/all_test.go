package controllers_test

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/admission"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/crd"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/events"
	"github.com/yare-dev/yare/controllers"
	"github.com/yare-dev/yare/controllers/nodeipam"
	"github.com/yare-dev/yare/controllers/servingtrust"
	"github.com/yare-dev/yare/reconcile"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

type lateClient struct{ client.Client }

// cluster runs the real store and API pipeline in memory with all controllers and a kubelet, on whose node pods that select
// one do not fit.
func cluster(t testing.TB) client.Client {
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	st := store.New(memory.New(false), api.Stored(), store.Options{Log: log, Indexes: rest.Indexes(), Keep: -1, Detect: true})
	self := &lateClient{}
	rbac := authz.NewRBAC(st)
	srv, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: st, Log: log, Authorizer: rbac, Admission: admission.All(admission.Deps{Store: st}),
		Resources: builtin.All(builtin.Deps{Store: st, Client: self, Authorizer: rbac, Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}})})
	if err != nil {
		t.Fatal(err)
	}
	c := srv.ClientAs(&authn.User{Name: "system:kube-controller-manager", Groups: []string{authn.Masters}})
	self.Client = c
	recorder := events.New(c, "controllers", "", log)
	custom := crd.NewServer(crd.Deps{Store: st, Serve: srv.Serve, Remove: srv.Remove, Client: c, Log: log})
	namespaces := run.Func("namespaces", func(ctx context.Context, ready func()) error {
		for _, name := range []string{"default", "ns"} {
			if _, err := c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
				return err
			}
		}
		if _, err := c.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}); err != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return nil
	})
	loops := append(controllers.All(controllers.Deps{
		Deps:   reconcile.Deps{Client: c, Informers: reconcile.NewInformers(c), Events: recorder, Log: log},
		RootCA: authority(t), Nodes: nodeipam.Config{Clusters: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}},
	}), recorder, rt.KubeletWhere(c, func(p *corev1.Pod) bool { return len(p.Spec.NodeSelector) == 0 }), healthy(c))
	all := run.InOrder("test", st, custom, namespaces, run.Together("loops", loops...))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- all.Run(ctx, func() {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if _, ok := t.(*testing.B); ok {
		time.Sleep(time.Second) // outside a bubble; no Node is needed
		return c
	}
	time.Sleep(30 * time.Second) // the Node's first status may be a Conflict, the second is not
	return c
}

// authority is a certificate of one, in PEM.
func authority(t testing.TB) []byte {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(nil, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// healthy posts the Node's status every ten seconds.
func healthy(c client.Client) run.Component {
	return run.Func("node", func(ctx context.Context, ready func()) error {
		ready()
		for tick := time.NewTicker(10 * time.Second); ; {
			n, err := client.Get[*corev1.Node](ctx, c, api.Key{Name: "n1"})
			if err == nil {
				_, _ = client.Mutate(ctx, c, n, "status", func(n *corev1.Node) {
					n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
				})
			}
			select {
			case <-ctx.Done():
				tick.Stop()
				return nil
			case <-tick.C:
			}
		}
	})
}

func template(labels map[string]string, policy corev1.RestartPolicy) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{RestartPolicy: policy,
		Containers: []corev1.Container{{Name: "c", Image: "img:v1"}}}}
}

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "ns", Name: name} }

func ptr[T any](v T) *T { return &v }

// pods prints "owner's kind x count" of the pods.
func pods(t testing.TB, c client.Client) string {
	count := map[string]int{}
	for _, p := range rt.List[*corev1.Pod](t, c) {
		kind := "nobody"
		if ref := metav1.GetControllerOf(p); ref != nil {
			kind = ref.Kind
		}
		count[kind]++
	}
	var out []string
	for k, n := range count {
		out = append(out, fmt.Sprintf("%s x%d", k, n))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// A namespace with one of each comes to life, is changed, and goes, through the real pipeline.
func TestWorkloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		root := rt.Get[*corev1.ConfigMap](t, c, "ns", "kube-root-ca.crt").Data["ca.crt"]
		if b := rt.Get[*certificatesv1.ClusterTrustBundle](t, c, "", servingtrust.Name(root)); b.Spec.TrustBundle != root {
			t.Errorf("trust bundle %+v", b.Spec)
		}
		rt.Get[*corev1.ServiceAccount](t, c, "ns", "default")
		if n := rt.Get[*corev1.Node](t, c, "", "n1"); n.Spec.PodCIDR != "10.42.0.0/24" || len(n.Spec.Taints) != 0 {
			t.Errorf("node %+v", n.Spec)
		}
		web := map[string]string{"app": "web"}
		rt.Create(t, c, &corev1.Service{ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{{Port: 80}}}})
		rt.Create(t, c, &appsv1.Deployment{ObjectMeta: meta("web"), Spec: appsv1.DeploymentSpec{Replicas: ptr(int32(3)),
			Selector: &metav1.LabelSelector{MatchLabels: web}, Template: template(web, "")}})
		daemon := map[string]string{"app": "daemon"}
		rt.Create(t, c, &appsv1.DaemonSet{ObjectMeta: meta("daemon"), Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: daemon}, Template: template(daemon, "")}})
		rt.Create(t, c, &batchv1.Job{ObjectMeta: meta("job"), Spec: batchv1.JobSpec{Completions: ptr(int32(2)), Parallelism: ptr(int32(2)),
			Template: template(nil, corev1.RestartPolicyNever)}})
		time.Sleep(5 * time.Second)
		if got := pods(t, c); got != "DaemonSet x1, Job x2, ReplicaSet x3" {
			t.Errorf("pods: %s", got)
		}
		if d := rt.Get[*appsv1.Deployment](t, c, "ns", "web"); d.Status.AvailableReplicas != 3 || d.Status.ObservedGeneration != d.Generation {
			t.Errorf("deployment %+v", d.Status)
		}
		if s := rt.List[*discoveryv1.EndpointSlice](t, c); len(s) != 1 || len(s[0].Endpoints) != 3 {
			t.Errorf("slices %+v", s)
		}
		for _, p := range rt.List[*corev1.Pod](t, c) {
			if ref := metav1.GetControllerOf(p); ref.Kind == "Job" {
				if err := rt.Finish(t.Context(), c, p, corev1.PodSucceeded, 0); err != nil {
					t.Error(err)
				}
			}
		}
		rt.Mutate(t, c, rt.Get[*appsv1.Deployment](t, c, "ns", "web"), "", func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.Containers[0].Image = "img:v2"
		})
		time.Sleep(10 * time.Second)
		if j := rt.Get[*batchv1.Job](t, c, "ns", "job").Status; j.Succeeded != 2 || j.CompletionTime == nil {
			t.Errorf("job %+v", j)
		}
		if d := rt.Get[*appsv1.Deployment](t, c, "ns", "web").Status; d.UpdatedReplicas != 3 || d.AvailableReplicas != 3 || d.Replicas != 3 {
			t.Errorf("deployment after the rollout %+v", d)
		}
		rt.Delete(t, c, rt.Get[*appsv1.Deployment](t, c, "ns", "web"), client.DeleteOptions{Propagation: metav1.DeletePropagationForeground})
		time.Sleep(5 * time.Second)
		if got := pods(t, c); got != "DaemonSet x1, Job x2" {
			t.Errorf("pods after the deployment went: %s", got)
		}
		if n := len(rt.List[*appsv1.ReplicaSet](t, c)); n != 0 {
			t.Errorf("%d replicasets are left", n)
		}
		rt.Delete(t, c, rt.Get[*corev1.Namespace](t, c, "", "ns"), client.DeleteOptions{})
		time.Sleep(10 * time.Second)
		if got := pods(t, c); got != "" {
			t.Errorf("pods of a namespace that is gone: %s", got)
		}
		if n := len(rt.List[*corev1.Namespace](t, c)); n != 1 {
			t.Errorf("%d namespaces", n)
		}
	})
}

// What is orphaned stays and is adopted by a successor; what is released stays and is replaced.
func TestOwnership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		web := map[string]string{"app": "web"}
		fresh := func() *appsv1.Deployment {
			return &appsv1.Deployment{ObjectMeta: meta("web"), Spec: appsv1.DeploymentSpec{Replicas: ptr(int32(2)),
				Selector: &metav1.LabelSelector{MatchLabels: web}, Template: template(web, "")}}
		}
		first := rt.Create(t, c, fresh())
		time.Sleep(time.Second)
		uids := func() (out []string) {
			for _, p := range rt.List[*corev1.Pod](t, c) {
				out = append(out, string(p.UID))
			}
			slices.Sort(out)
			return out
		}
		before := uids()
		rt.Delete(t, c, first, client.DeleteOptions{Propagation: metav1.DeletePropagationOrphan})
		time.Sleep(time.Minute)
		sets := rt.List[*appsv1.ReplicaSet](t, c)
		if len(sets) != 1 || len(sets[0].OwnerReferences) != 0 || !slices.Equal(uids(), before) {
			t.Fatalf("orphaned: %d sets, pods %v, were %v", len(sets), uids(), before)
		}
		second := rt.Create(t, c, fresh())
		time.Sleep(time.Second)
		if rs := rt.List[*appsv1.ReplicaSet](t, c); len(rs) != 1 || !metav1.IsControlledBy(rs[0], second) || !slices.Equal(uids(), before) {
			t.Errorf("adopted: %d sets, pods %v, were %v", len(rs), uids(), before)
		}
		p := rt.List[*corev1.Pod](t, c)[0]
		rt.Mutate(t, c, p, "", func(p *corev1.Pod) { p.Labels["app"] = "debug" })
		time.Sleep(time.Second)
		if got := pods(t, c); got != "ReplicaSet x2, nobody x1" {
			t.Errorf("released: %s", got)
		}
		rt.Delete(t, c, second, client.DeleteOptions{})
		time.Sleep(time.Minute)
		if got := pods(t, c); got != "nobody x1" {
			t.Errorf("in the end: %s", got)
		}
	})
}

// A Node that is silent loses its pods to others' when there is another Node, and everything that it had when it is deleted.
func TestLostNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		rt.Create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}})
		rt.Create(t, c, &corev1.Pod{ObjectMeta: meta("lonely"), Spec: corev1.PodSpec{NodeName: "n2", Containers: template(nil, "").Spec.Containers}})
		time.Sleep(90 * time.Second) // n2 never reports
		n := rt.Get[*corev1.Node](t, c, "", "n2")
		if len(n.Spec.Taints) != 2 || n.Spec.PodCIDR == "" {
			t.Errorf("node %+v", n.Spec)
		}
		rt.Delete(t, c, n, client.DeleteOptions{})
		time.Sleep(2 * time.Minute)
		if got := pods(t, c); got != "" {
			t.Errorf("pods of a node that is gone: %s", got)
		}
	})
}

// Idle means idle: a converged cluster writes nothing but the Node's heartbeats.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		web := map[string]string{"app": "web"}
		rt.Create(t, c, &corev1.Service{ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{Selector: web, Ports: []corev1.ServicePort{{Port: 80}}}})
		rt.Create(t, c, &appsv1.Deployment{ObjectMeta: meta("web"), Spec: appsv1.DeploymentSpec{Replicas: ptr(int32(3)),
			Selector: &metav1.LabelSelector{MatchLabels: web}, Template: template(web, "")}})
		time.Sleep(2 * time.Hour) // Events expire after one
		writes := 0
		ctx, cancel := context.WithCancel(t.Context())
		for _, k := range api.Stored() {
			if k == api.NodeKind {
				continue
			}
			go func() {
				synced := false
				for e := range c.Watch(ctx, k, client.Query{}, 0) {
					if e.Op == client.Synced {
						synced = true
					} else if synced {
						writes++
						t.Logf("%v %s %s", e.Op, k, e.Object.GetName())
					}
				}
			}()
		}
		time.Sleep(time.Hour)
		cancel()
		synctest.Wait()
		if writes != 0 {
			t.Errorf("%d writes in an idle hour", writes)
		}
	})
}

// The roles that follow from the declarations allow no more than reading, and what is written.
func TestRoles(t *testing.T) {
	c := rt.New(t)
	list := controllers.List(controllers.Deps{Deps: rt.Deps(t, c), SecretToken: func(*corev1.Secret, *corev1.ServiceAccount) (string, error) { return "", nil }, SignCertificate: func(*x509.Certificate) ([]byte, error) { return nil, nil }, Nodes: nodeipam.Config{Clusters: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}})
	names := map[string]bool{}
	for _, ctl := range list {
		if names[ctl.Name()] {
			t.Errorf("two controllers are called %s", ctl.Name())
		}
		names[ctl.Name()] = true
		for _, r := range ctl.Role().Rules {
			if slices.Contains(r.Verbs, rbacv1.VerbAll) {
				t.Errorf("%s may do everything to %v", ctl.Name(), r.Resources)
			}
		}
	}
}

// BenchmarkDeployment is the time from the creation of a Deployment of 100 until all its pods are available, with a
// kubelet that takes no time, in a store without a disk.
func BenchmarkDeployment(b *testing.B) {
	c := cluster(b)
	n, writes := 0, api.Revision(0)
	for b.Loop() {
		n++
		l := map[string]string{"app": fmt.Sprint("web", n)}
		d := rt.Create(b, c, &appsv1.Deployment{ObjectMeta: meta(l["app"]), Spec: appsv1.DeploymentSpec{Replicas: ptr(int32(100)),
			Selector: &metav1.LabelSelector{MatchLabels: l}, Template: template(l, "")}})
		for e := range c.Watch(b.Context(), api.DeploymentKind, client.Query{Namespace: "ns"}, api.RevisionOf(d)) {
			if now, ok := e.Object.(*appsv1.Deployment); ok && now.Name == d.Name && now.Status.AvailableReplicas == 100 {
				writes += e.Revision - api.RevisionOf(d)
				break
			}
		}
		rt.Delete(b, c, d, client.DeleteOptions{})
	}
	b.ReportMetric(float64(writes)/float64(n), "writes/op")
}
