package etcdkv_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/etcdkv"
)

func runStore(t testing.TB, b store.Backend) *store.Store {
	t.Helper()
	s := store.New(b, api.Stored(), store.Options{Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("store stopped:", err)
		}
	})
	<-ready
	return s
}

// Upstream's decoder reads what we store, under upstream's keys, and we read what upstream's encoder writes.
func TestLayout(t *testing.T) {
	t.Parallel()
	e := run(t, etcd.Config{Ephemeral: true})
	s := runStore(t, etcdkv.New(e))
	ctx := t.Context()
	for _, tt := range []struct {
		kind *api.Kind
		key  string
	}{
		{api.PodKind, "/registry/pods/ns/a"},
		{api.NodeKind, "/registry/minions/a"},
		{api.ServiceKind, "/registry/services/specs/ns/a"},
		{api.EndpointsKind, "/registry/services/endpoints/ns/a"},
		{api.DeploymentKind, "/registry/deployments/ns/a"},
		{api.LeaseKind, "/registry/leases/ns/a"},
		{api.ClusterRoleKind, "/registry/clusterroles/a"},
		{api.EndpointSliceKind, "/registry/endpointslices/ns/a"},
		{api.EventKind, "/registry/events/ns/a"},
	} {
		o := tt.kind.New()
		o.SetName("a")
		if tt.kind.Namespaced {
			o.SetNamespace("ns")
		}
		o.SetLabels(map[string]string{"k": "v"})
		entry, err := s.Create(ctx, tt.kind, o, 0)
		if err != nil {
			t.Fatal(err)
		}
		r, err := e.Client().Get(ctx, tt.key)
		if err != nil || len(r.Kvs) != 1 || r.Kvs[0].ModRevision != int64(entry.Revision) {
			t.Fatalf("%s: %v, %v", tt.key, r, err)
		}
		theirs, _, err := scheme.Codecs.UniversalDeserializer().Decode(r.Kvs[0].Value, nil, nil)
		if err != nil {
			t.Fatal(tt.key, err)
		}
		meta := theirs.(metav1.Object)
		if meta.GetResourceVersion() != "" {
			t.Errorf("%s is stored with resourceVersion %s", tt.key, meta.GetResourceVersion())
		}
		meta.SetResourceVersion(entry.Revision.String())
		theirs.GetObjectKind().SetGroupVersionKind(tt.kind.GVK())
		if d := cmp.Diff(runtime.Object(entry.Object), theirs); d != "" {
			t.Errorf("%s: %s", tt.key, d)
		}
	}
	theirs(t, e.Client(), s)
}

// theirs writes as upstream does, in both of its encodings, and reads through the Store.
func theirs(t *testing.T, c *clientv3.Client, s *store.Store) {
	ctx := t.Context()
	for _, mediaType := range []string{runtime.ContentTypeProtobuf, runtime.ContentTypeJSON} {
		info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaType)
		cm := &corev1.ConfigMap{Data: map[string]string{"type": mediaType}}
		cm.Namespace, cm.Name = "ns", "theirs"
		data, err := runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), cm)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Put(ctx, "/registry/configmaps/ns/theirs", string(data)); err != nil {
			t.Fatal(err)
		}
		if err := s.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		rev, err := c.Get(ctx, "\x00", clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Wait(ctx, api.Revision(rev.Header.Revision)); err != nil {
			t.Fatal(err)
		}
		entry := s.Snapshot(api.ConfigMapKind).Get(api.Key{Namespace: "ns", Name: "theirs"})
		if entry == nil || entry.Err() != nil || entry.Object.(*corev1.ConfigMap).Data["type"] != mediaType {
			t.Errorf("%s reads as %v", mediaType, entry)
		}
	}
}
