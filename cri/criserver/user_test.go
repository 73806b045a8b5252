package criserver

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func accountsOf(files map[string]string) accounts {
	return func(name string) (io.ReadCloser, error) {
		text, ok := files[name]
		if !ok {
			return nil, nil
		}
		return io.NopCloser(strings.NewReader(text)), nil
	}
}

func TestResolveUser(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nbad line\nalice:x:1000:1001:A:/home/alice:/bin/sh\nbig:x:4294967297:0::/:/\nnl:x:7:7::not/absolute:/\n",
		"/etc/group":  "root:x:0:\nalice:x:1001:\nstaff:x:50:bob,alice\nroot2:x:0:alice\n",
	}
	id := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	type sc = runtimeapi.LinuxContainerSecurityContext
	for name, c := range map[string]struct {
		sc    *sc
		image string
		files map[string]string
		want  user
		fails string
	}{
		"nothing said":           {want: user{Home: "/root"}},
		"image's name":           {image: "alice", want: user{UID: 1000, GID: 1001, Groups: []uint32{50, 0}, Home: "/home/alice"}},
		"image's name and group": {image: "alice:staff", want: user{UID: 1000, GID: 50, Groups: []uint32{0}, Home: "/home/alice"}},
		"image's numbers":        {image: "5:6", want: user{UID: 5, GID: 6, Home: "/"}},
		"number with an account": {image: "1000", want: user{UID: 1000, GID: 1001, Groups: []uint32{50, 0}, Home: "/home/alice"}},
		"pod over image":         {sc: &sc{RunAsUser: id(12)}, image: "alice:staff", want: user{UID: 12, Home: "/"}},
		"pod's group":            {sc: &sc{RunAsUsername: "alice", RunAsGroup: id(77)}, want: user{UID: 1000, GID: 77, Groups: []uint32{50, 0}, Home: "/home/alice"}},
		"group alone":            {sc: &sc{RunAsGroup: id(77)}, image: "alice", fails: "without a user"},
		"supplemental":           {sc: &sc{RunAsUser: id(12), SupplementalGroups: []int64{3, 4, 3}}, want: user{UID: 12, Groups: []uint32{3, 4}, Home: "/"}},
		"strict":                 {sc: &sc{RunAsUser: id(1000), SupplementalGroups: []int64{3}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict}, want: user{UID: 1000, GID: 1001, Groups: []uint32{3}, Home: "/home/alice"}},
		"no files":               {image: "7", files: map[string]string{}, want: user{UID: 7, Home: "/"}},
		"home is no path":        {image: "nl", want: user{UID: 7, GID: 7, Home: "/"}},
		"unknown name":           {image: "carol", fails: "no such user"},
		"unknown group":          {image: "alice:x", fails: "no such group"},
		"overflow":               {image: "4294967296", fails: "not between"},
		"overflow to root":       {image: "18446744073709551616", fails: "not between"},
		"overflow in passwd":     {image: "big", fails: "not between"},
		"negative":               {sc: &sc{RunAsUser: id(-1)}, fails: "not between"},
		"negative group":         {sc: &sc{RunAsUser: id(1), RunAsGroup: id(-5)}, fails: "not between"},
		"supplemental overflow":  {sc: &sc{SupplementalGroups: []int64{1 << 32}}, fails: "not between"},
		"line that never ends":   {image: "alice", files: map[string]string{"/etc/passwd": strings.Repeat("x", maxAccounts+10)}, fails: "too long"},
	} {
		if c.files == nil {
			c.files = files
		}
		got, err := resolveUser(c.sc, c.image, accountsOf(c.files))
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: %+v, %v, want %q", name, got, err, c.fails)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// TestAccountsStayInside has an image whose passwd is not a file of its own.
func TestAccountsStayInside(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	passwd := filepath.Join(root, "etc/passwd")
	if err := os.Symlink("/etc/passwd-real", passwd); err != nil {
		t.Fatal(err)
	}
	if r, err := rootfsAccounts(root)("/etc/passwd"); r != nil || err != nil {
		t.Errorf("link to a missing file: %v, %v", r, err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd-real"), []byte("in:x:5:6::/:/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if u, err := resolveUser(nil, "in", rootfsAccounts(root)); err != nil || u.UID != 5 {
		t.Errorf("absolute link inside: %+v, %v", u, err)
	}
	if err := os.Remove(passwd); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(passwd, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := rootfsAccounts(root)("/etc/passwd"); err == nil {
		t.Error("a pipe was opened as passwd")
	}
}
