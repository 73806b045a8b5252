package users

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

func folder(t *testing.T, dir, uid string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, uid), 0o755); err != nil {
		t.Fatal(err)
	}
}

// first returns the first id of a pod's range.
func first(t *testing.T, r *Ranges, uid types.UID) uint32 {
	t.Helper()
	u, err := r.Of(uid)
	if err != nil {
		t.Fatal(err)
	}
	if len(u.Uids) != 1 || len(u.Gids) != 1 || u.Uids[0].HostId != u.Gids[0].HostId || u.Uids[0].ContainerId != 0 || u.Uids[0].Length != PerPod {
		t.Fatalf("got %v", u)
	}
	return u.Uids[0].HostId
}

func TestRanges(t *testing.T) {
	dir := t.TempDir()
	for _, uid := range []string{"a", "b", "c"} {
		folder(t, dir, uid)
	}
	ids := IDs{First: PerPod, PerPod: PerPod, Pods: 2}
	r := New(ids, dir)
	a, b := first(t, r, "a"), first(t, r, "b")
	if a != PerPod || b != 2*PerPod || first(t, r, "a") != a {
		t.Errorf("got %d and %d", a, b)
	}
	if _, err := r.Of("c"); err == nil || !strings.Contains(err.Error(), "all 2 ranges") {
		t.Errorf("a third: %v", err)
	}
	r = New(ids, dir) // a kubelet that was started again
	if first(t, r, "b") != b {
		t.Error("b has another range than before")
	}
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if got := first(t, r, "c"); got != a {
		t.Errorf("c got %d, not what a gave back", got)
	}
}

// What upstream's kubelet, or one with another configuration, gave out is not given again.
func TestOthers(t *testing.T) {
	dir := t.TempDir()
	folder(t, dir, "a")
	folder(t, dir, "other")
	text := `{"uidMappings":[{"hostId":131071,"containerId":0,"length":2}],"gidMappings":[{"hostId":4294901760,"containerId":0,"length":65536}]}`
	if err := os.WriteFile(filepath.Join(dir, "other", fileName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := New(IDs{First: PerPod, PerPod: PerPod, Pods: 3}, dir)
	if got := first(t, r, "a"); got != 3*PerPod {
		t.Errorf("got %d", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "other", fileName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	folder(t, dir, "b")
	if _, err := r.Of("b"); err == nil {
		t.Error("a range was given although that of another pod is not known")
	}
}

func TestHostIDs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	for text, want := range map[string]string{
		"":                         "",
		"other:100000:65536":       "",
		"kubelet:655360:655360":    "",
		"kubelet:65536:6553":       "enough for 10 pods",
		"kubelet:1000:6553600":     "multiple",
		"kubelet:0:6553600":        "multiple",
		"kubelet:x:6553600":        "invalid syntax",
		"kubelet:0:1\nkubelet:0:1": "more than one line",
	} {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		ids, err := HostIDs(file, file, PerPod, 10)
		switch {
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: got %v, want %q", text, err, want)
		case want == "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case strings.HasPrefix(text, "kubelet:655360") && ids.First != 655360, text == "" && ids.First != PerPod:
			t.Errorf("%q: got %v", text, ids)
		}
	}
	if err := os.WriteFile(file, []byte("kubelet:655360:655360\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := HostIDs(file, "/nobody/here", PerPod, 10); err == nil {
		t.Error("different ids of users and groups were taken")
	}
	if _, err := HostIDs("/nobody/here", "/nobody/here", 1<<31, 10); err == nil {
		t.Error("more ids than there are were taken")
	}
}
