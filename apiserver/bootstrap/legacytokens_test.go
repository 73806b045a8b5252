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
		first := time.Now().UTC().Format(dayFormat)
		m := mended(t, c, tracking)
		if m.Data[trackedSince] != first {
			t.Errorf("%v", m.Data)
		}
		time.Sleep(72 * time.Hour)
		for day, want := range map[string]string{"2020-02-02": "2020-02-02", "soon": time.Now().UTC().Format(dayFormat)} {
			if _, err := client.Mutate(t.Context(), c, mended(t, c, tracking), "", func(m *corev1.ConfigMap) { m.Data[trackedSince] = day }); err != nil {
				t.Fatal(err)
			}
			if m := mended(t, c, tracking); m.Data[trackedSince] != want {
				t.Errorf("after %q: %v, want %s", day, m.Data, want)
			}
		}
		if err := c.Delete(t.Context(), mended(t, c, tracking), client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if m := mended(t, c, tracking); m.Data[trackedSince] == "" {
			t.Errorf("after its deletion: %v", m.Data)
		}
	})
}
