package follow

import (
	"log/slog"
	"maps"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

type values struct {
	m      map[string]string
	resets int
}

func (v *values) Reset() { v.m = map[string]string{}; v.resets++ }

func (v *values) Change(_ *api.Kind, now, old api.Object) {
	if now == nil {
		delete(v.m, old.GetName())
		return
	}
	v.m[now.GetName()] = now.(*corev1.ConfigMap).Data["v"]
}

func configMap(name, v string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "u"}, Data: map[string]string{"v": v}}
}

// TestCatchUp checks the state after each write against the store's own content, through a gap that is larger than
// the window of events.
func TestCatchUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := store.New(memory.New(false), api.Stored(), store.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Window: 4, Keep: -1})
		go func() {
			if err := s.Run(t.Context(), func() {}); err != nil && t.Context().Err() == nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		v := &values{}
		f := New(s, v, api.ConfigMapKind)
		check := func() {
			t.Helper()
			if err := f.CatchUp(); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			for e := range s.Snapshot(api.ConfigMapKind).All("", api.Key{}) {
				want[e.Key.Name] = e.Object.(*corev1.ConfigMap).Data["v"]
			}
			if !maps.Equal(want, v.m) {
				t.Errorf("have %v, want %v", v.m, want)
			}
			if !f.Current() {
				t.Error("not current after CatchUp")
			}
		}
		check()
		put := func(name, value string) {
			t.Helper()
			k := api.ConfigMapKind
			var err error
			if e := s.Snapshot(k).Get(api.Key{Namespace: "default", Name: name}); e != nil {
				_, err = s.Update(t.Context(), k, configMap(name, value), e.Revision, 0)
			} else {
				_, err = s.Create(t.Context(), k, configMap(name, value), 0)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		put("a", "1")
		check()
		put("a", "2")
		put("b", "1")
		check()
		e := s.Snapshot(api.ConfigMapKind).Get(api.Key{Namespace: "default", Name: "a"})
		if _, err := s.Delete(t.Context(), api.ConfigMapKind, e.Key, e.Revision); err != nil {
			t.Fatal(err)
		}
		check()
		if v.resets != 1 {
			t.Errorf("rebuilt %d times before a gap", v.resets)
		}
		for i := range 40 {
			put("c", string(rune('a'+i%26)))
		}
		check()
		if v.resets < 2 {
			t.Error("not rebuilt after a gap")
		}
	})
}
