package kubelet

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yare-dev/yare/api"
)

// Pods that are gone end together, each within its own grace, and what one used is free when it has ended.
func TestStrangersEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.runtime.Linger = map[string]time.Duration{"slow": 20 * time.Second, "quick": time.Second}
		<-h.start()
		for name, c := range map[string]string{"a": "slow", "b": "slow", "c": "slow", "q": "quick"} {
			p := newPod(name)
			p.Spec.Containers[0].Name = c
			h.api.Put(p)
		}
		synctest.Wait()
		h.stop()
		for _, name := range []string{"a", "b", "c", "q"} {
			h.api.DeletePod(api.Key{Namespace: "default", Name: name}, 0)
		}
		<-h.start()
		left := func() int {
			synctest.Wait()
			folders, err := os.ReadDir(filepath.Join(h.config.RootDir, "pods"))
			if err != nil {
				t.Fatal(err)
			}
			return len(folders)
		}
		time.Sleep(2 * time.Second)
		if n := left(); n != 3 {
			t.Errorf("after the quick one's grace there are %d pods left", n)
		}
		time.Sleep(20 * time.Second)
		if n := left(); n != 0 || len(h.runtime.Left()) > 0 {
			t.Errorf("after one grace period there are %d pods left, %v", n, h.runtime.Left())
		}
	})
}
