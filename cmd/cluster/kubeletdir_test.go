package cluster

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// The first cluster has the usual path for as long as it is, and no other gets it meanwhile; what somebody else has there stays.
func TestKubeletDir(t *testing.T) {
	h := host(t)
	want := func(r *Record, dir, text string) {
		t.Helper()
		got, note, err := h.MakeKubeletDir(r)
		if err != nil || got != dir || r.KubeletPath() != dir || (note == "") != (text == "") || !strings.Contains(note, text) {
			t.Errorf("%s, %q, %v; want %s, %q", got, note, err, dir, text)
		}
		if info, err := os.Stat(got); err != nil || !info.IsDir() {
			t.Error(err)
		}
	}
	remove := func(r *Record) {
		t.Helper()
		if err := errors.Join(h.removeKubeletLink(t.Context(), r), h.forget(t.Context(), r)); err != nil {
			t.Error(err)
		}
	}
	a, b := claim(t, h, Wish{Name: "a"}), claim(t, h, Wish{Name: "b"})
	for range 2 { // the second is after a restart
		want(a, h.UsualKubelet, "")
		want(b, b.ownKubelet(), "was another's when the cluster was made: tell drivers of storage and device plugins that this cluster's kubelet has its folder in "+b.DataDir)
	}
	remove(a)
	if _, err := os.Lstat(h.UsualKubelet); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the link is left:", err)
	}
	want(b, b.ownKubelet(), "was another's") // drivers know it by this path
	remove(b)
	if err := os.Mkdir(h.UsualKubelet, 0o700); err != nil {
		t.Fatal(err)
	}
	c := claim(t, h, Wish{Name: "c"})
	want(c, c.ownKubelet(), "was another's")
	remove(c)
	if err := os.Remove(h.UsualKubelet); err != nil {
		t.Error("somebody else's folder was removed:", err)
	}
	d := claim(t, h, Wish{Name: "d"})
	if err := os.Mkdir(h.UsualKubelet, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.MakeKubeletDir(d); err == nil || !strings.Contains(err.Error(), "somebody else has put something there: move it away") {
		t.Error(err)
	}
}
