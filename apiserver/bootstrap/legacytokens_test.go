package bootstrap

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/client"
)

// The day on which tracking began stays, unless somebody makes it none.
func TestTracking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		stop := start(t, c)
		defer stop()
		look := func() *corev1.ConfigMap {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			return get[*corev1.ConfigMap](t, c, tracking.Namespace, tracking.Name)
		}
		first := time.Now().UTC().Format(dayFormat)
		m := look()
		if m.Data[trackedSince] != first {
			t.Errorf("%v", m.Data)
		}
		time.Sleep(72 * time.Hour)
		for day, want := range map[string]string{"2020-02-02": "2020-02-02", "soon": time.Now().UTC().Format(dayFormat)} {
			if _, err := client.Mutate(t.Context(), c, look(), "", func(m *corev1.ConfigMap) { m.Data[trackedSince] = day }); err != nil {
				t.Fatal(err)
			}
			if m := look(); m.Data[trackedSince] != want {
				t.Errorf("after %q: %v, want %s", day, m.Data, want)
			}
		}
		if err := c.Delete(t.Context(), look(), client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if m := look(); m.Data[trackedSince] == "" {
			t.Errorf("after its deletion: %v", m.Data)
		}
	})
}
