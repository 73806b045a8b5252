package sealed

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// A key management service that is away for a moment costs that moment, not what it has sealed: the store is not ready until
// it is back, and nobody is told that an object is gone.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vault{}
		v.keyID.Store("k1")
		inner := memory.New(true)
		server := func() (s *store.Store, ready <-chan struct{}) {
			b := over(t, inner, "resources: [{resources: [secrets], providers: [{kms: {apiVersion: v2, name: vault, endpoint: 'unix:///none'}}]}]")
			kms := b.now.Load().services["vault"]
			kms.client = direct{v, new(int)}
			s = store.New(b, api.Stored(), store.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Keep: -1})
			ctx, cancel := context.WithCancel(t.Context())
			up, done := make(chan struct{}), make(chan error, 1)
			go func() { done <- s.Run(ctx, func() { close(up) }) }()
			t.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if err := kms.close(); err != nil {
					t.Error(err)
				}
			})
			return s, up
		}
		create := func(s *store.Store, name string) *store.Entry {
			e, err := s.Create(t.Context(), api.SecretKind, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Data: map[string][]byte{"a": []byte("b")}}, 0)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		reads := func(s *store.Store, name string) bool {
			e := s.Snapshot(api.SecretKind).Get(api.Key{Namespace: "ns", Name: name})
			return e != nil && e.Err() == nil && string(e.Object.(*corev1.Secret).Data["a"]) == "b"
		}
		a, up := server()
		<-up
		first := create(a, "one")
		if v.asked.Load() != 0 {
			t.Error("the service is asked for a seed that we have made")
		}

		v.away.Store(true)
		b, up := server()
		time.Sleep(time.Minute)
		select {
		case <-up:
			t.Fatal("ready without what is sealed")
		default:
		}
		v.away.Store(false)
		time.Sleep(time.Second)
		<-up
		if !reads(b, "one") {
			t.Error("not read when the service is back")
		}

		// Another server writes with a seed that this one does not know.
		v.keyID.Store("k2")
		c, up := server()
		<-up
		v.away.Store(true)
		w, err := b.Watch(api.SecretKind, first.Revision, 0)
		if err != nil {
			t.Fatal(err)
		}
		changed := first.Object.DeepCopyObject().(*corev1.Secret)
		if _, err := c.Update(t.Context(), api.SecretKind, changed, first.Revision, 0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !reads(b, "one") {
			t.Error("not read while the service is away")
		}
		v.away.Store(false)
		time.Sleep(time.Second)
		events, _, err := w.Ready()
		if err != nil || len(events) != 1 || events[0].Deleted || !reads(b, "one") {
			t.Errorf("%+v %v", events, err)
		}
	})
}
