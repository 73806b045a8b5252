package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The first cluster has the usual path, until it is removed; what somebody else has there stays.
func TestKubeletDir(t *testing.T) {
	h := host(t)
	h.UsualKubelet = filepath.Join(t.TempDir(), "kubelet")
	a, b := claim(t, h, Wish{Name: "a"}), claim(t, h, Wish{Name: "b"})
	want := func(r *Record, dir, text string) {
		t.Helper()
		got, note, err := h.KubeletDir(r)
		if err != nil || got != dir || (note == "") != (text == "") || !strings.Contains(note, text) {
			t.Errorf("%s, %q, %v; want %s, %q", got, note, err, dir, text)
		}
		if info, err := os.Stat(got); err != nil || !info.IsDir() {
			t.Error(err)
		}
	}
	remove := func(r *Record) {
		t.Helper()
		if err := h.removeKubeletLink(t.Context(), r); err != nil {
			t.Error(err)
		}
	}
	for range 2 { // the second is after a restart
		want(a, h.UsualKubelet, "")
		want(b, b.kubeletDir(), "leads to "+a.kubeletDir()+": tell drivers")
	}
	remove(b)
	want(a, h.UsualKubelet, "")
	remove(a)
	if _, err := os.Lstat(h.UsualKubelet); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the link is left:", err)
	}
	remove(a)
	if err := os.Mkdir(h.UsualKubelet, 0o700); err != nil {
		t.Fatal(err)
	}
	want(a, a.kubeletDir(), "belongs to somebody else")
	remove(a)
	if _, err := os.Lstat(h.UsualKubelet); err != nil {
		t.Error("somebody else's folder was removed:", err)
	}
	h.UsualKubelet = filepath.Join(t.TempDir(), "no", "such", "folder")
	want(a, a.kubeletDir(), "no such file or directory; tell drivers")
}
