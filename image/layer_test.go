package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLayers unpacks change sets on top of each other, with overlayfs and with
// copies, and looks at the result.
func TestLayers(t *testing.T) {
	base := []entry{
		file("bin/", ""), file("bin/a", "A"), file("etc/", ""), file("etc/x", "1"), file("etc/y", "2"),
		file("usr/", ""), file("usr/lib/", ""), file("usr/lib/l", "L"), symlink("lib", "usr/lib"),
	}
	for name, c := range map[string]struct {
		upper []entry
		want  []string
	}{
		"replace and add": {
			[]entry{file("etc/x", "new"), file("opt/deep/er/f", "F")},
			[]string{"bin/", "bin/a = A", "etc/", "etc/x = new", "etc/y = 2", "lib -> usr/lib", "opt/", "opt/deep/", "opt/deep/er/", "opt/deep/er/f = F", "usr/", "usr/lib/", "usr/lib/l = L"},
		},
		"whiteout": {
			[]entry{file("etc/.wh.x", ""), file(".wh.bin", "")},
			[]string{"etc/", "etc/y = 2", "lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/l = L"},
		},
		"opaque, marker last": {
			[]entry{file("etc/", ""), file("etc/z", "3"), file("etc/.wh..wh..opq", "")},
			[]string{"bin/", "bin/a = A", "etc/", "etc/z = 3", "lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/l = L"},
		},
		"opaque below": {
			[]entry{file("usr/lib/new", "N"), file("usr/.wh..wh..opq", "")},
			[]string{"bin/", "bin/a = A", "etc/", "etc/x = 1", "etc/y = 2", "lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/new = N"},
		},
		"whiteout and new of the same name": {
			[]entry{file("etc/", ""), file("etc/q", "Q"), file(".wh.etc", "")},
			[]string{"bin/", "bin/a = A", "etc/", "etc/q = Q", "lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/l = L"},
		},
		"through a lower layer's link": {
			[]entry{file("lib/m", "M")},
			[]string{"bin/", "bin/a = A", "etc/", "etc/x = 1", "etc/y = 2", "lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/l = L", "usr/lib/m = M"},
		},
		"file over directory, directory over file": {
			[]entry{file("usr", "no more"), file("etc/x/", ""), file("etc/x/y", "Y")},
			[]string{"bin/", "bin/a = A", "etc/", "etc/x/", "etc/x/y = Y", "etc/y = 2", "lib -> usr/lib", "usr = no more"},
		},
		"hard link into a lower layer": {
			[]entry{hardlink("bin/b", "bin/a")},
			[]string{"bin/", "bin/a = A", "bin/b = A", "etc/", "etc/x = 1", "etc/y = 2", "lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/l = L"},
		},
		"absolute names, dangling link as directory": {
			[]entry{file("/etc/x", "abs"), symlink("run", "/var/run"), file("run/pid", "7"), file(".wh.usr", ""), file("./.wh..wh.plnk", "")},
			[]string{"bin/", "bin/a = A", "etc/", "etc/x = abs", "etc/y = 2", "lib -> usr/lib", "run -> /var/run", "var/", "var/run/", "var/run/pid = 7"},
		},
		"whiteout of nothing": {
			[]entry{file("nowhere/.wh.x", ""), file(".wh.usr", ""), file(".wh.etc", ""), file(".wh.bin", "")},
			[]string{"lib -> usr/lib"},
		},
	} {
		for _, plainCopy := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/copy=%v", name, plainCopy), func(t *testing.T) {
				t.Parallel()
				s := newStore(t, func(c *Config) { c.Copy = plainCopy })
				im, err := ingest(t, s, bundleOf(t, layerOf(t, base...), layerOf(t, c.upper...)), "t")
				if err != nil {
					t.Fatal(err)
				}
				root, err := s.Mount(t.Context(), im.ID, "c1")
				if err != nil {
					t.Fatal(err)
				}
				wantListing(t, root, c.want...)
			})
		}
	}
}

// TestHostile checks that bad archives are refused, say why, and leave neither
// an image nor a file, inside the store or out of it.
func TestHostile(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	for name, c := range map[string]struct {
		entries []entry
		err     string
	}{
		"climbing name":          {[]entry{file(up+outside[1:]+"/f", "x")}, "leads out of the image"},
		"climbing in the middle": {[]entry{file("a/../../b", "x")}, "leads out of the image"},
		"climbing hard link":     {[]entry{hardlink("l", up+"etc/passwd")}, "leads out of the image"},
		"hard link to host":      {[]entry{hardlink("l", "/etc/passwd")}, "no such file"},
		"link loop":              {[]entry{symlink("a", "b"), symlink("b", "a"), file("a/f", "x")}, "symbolic links"},
		"self loop":              {[]entry{symlink("a", "a/a"), file("a/f", "x")}, "symbolic links"},
		"file as directory":      {[]entry{file("f", "x"), file("f/g", "y")}, "not a directory"},
		"root is a file":         {[]entry{{tar.Header{Name: ".", Typeflag: tar.TypeSymlink, Linkname: "/"}, ""}}, "root must be a directory"},
		"whiteout of parent":     {[]entry{file("a/.wh...", "")}, "whiteout of nothing"},
		"whiteout device":        {[]entry{{tar.Header{Name: "d", Typeflag: tar.TypeChar}, ""}}, "overlayfs's own"},
		"overlay redirect": {[]entry{{tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatPAX,
			PAXRecords: map[string]string{paxXattr + "trusted.overlay.redirect": "/etc"}}, ""}}, "overlayfs's own"},
		"unknown type":    {[]entry{{tar.Header{Name: "x", Typeflag: 'Z'}, ""}}, "not known"},
		"too many":        {[]entry{file("1", ""), file("2", ""), file("3", ""), file("4", ""), file("5", "")}, "more than 4 entries"},
		"too large":       {[]entry{file("f", strings.Repeat("x", 3000))}, "larger than 2048 bytes"},
		"too large twice": {[]entry{file("f", strings.Repeat("x", 1500)), file("g", strings.Repeat("x", 1500))}, "larger than 2048 bytes"},
		"long name":       {[]entry{file(strings.Repeat("n/", 2100)+"x", "")}, "name of"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, func(c *Config) { c.Limits = Limits{Entries: 4, Bytes: 2048} })
			_, err := ingest(t, s, bundleOf(t, layerOf(t, c.entries...)), "bad")
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if images, _ := s.List(t.Context()); len(images) != 0 {
				t.Errorf("an image was recorded: %v", images)
			}
			if left, _ := os.ReadDir(s.path("layers")); len(left) != 0 {
				t.Errorf("a layer was kept: %v", left)
			}
			wantListing(t, outside)
		})
	}
}

// TestOpaqueLarge has a layer begin a directory anew that those below gave more names than are read at once: of them only what the layer has made stays.
func TestOpaqueLarge(t *testing.T) {
	t.Parallel()
	lower := []entry{file("d/", "")}
	for i := range 3000 {
		lower = append(lower, file(fmt.Sprintf("d/%d", i), ""))
	}
	for _, plainCopy := range []bool{false, true} {
		s := newStore(t, func(c *Config) { c.Copy = plainCopy })
		im, err := ingest(t, s, bundleOf(t, layerOf(t, lower...), layerOf(t, file("d/new", "N"), file("d/.wh..wh..opq", ""))), "x")
		if err != nil {
			t.Fatal(err)
		}
		root, err := s.Mount(t.Context(), im.ID, "k")
		if err != nil {
			t.Fatal(err)
		}
		wantListing(t, root, "d/", "d/new = N")
		if err := s.Unmount(t.Context(), "k"); err != nil {
			t.Error(err)
		}
	}
}

// TestLinksStayInside follows links that name host paths: they mean the image's.
func TestLinksStayInside(t *testing.T) {
	t.Parallel()
	host := t.TempDir()
	s := newStore(t)
	im, err := ingest(t, s, bundleOf(t, layerOf(t,
		symlink("abs", host), file("abs/f", "1"), symlink("rel", strings.Repeat("../", 30)+host[1:]), file("rel/g", "2"),
		symlink("victim", filepath.Join(host, "f")), file("victim", "3"))), "links")
	if err != nil {
		t.Fatal(err)
	}
	wantListing(t, host)
	root, err := s.Mount(t.Context(), im.ID, "k")
	if err != nil {
		t.Fatal(err)
	}
	wantListing(t, filepath.Join(root, host), "f = 1", "g = 2")
}

func TestWrongDiffID(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	b := bundleOf(t, layerOf(t, file("a", "1")))
	b.layers[0].open = bundleOf(t, layerOf(t, file("a", "2"))).layers[0].open
	if _, err := ingest(t, s, b, "x"); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v, want ErrInvalid", err)
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	suid := file("su", "x")
	suid.Mode, suid.Uid, suid.Gid = 0o4755, 12, 34
	suid.PAXRecords = map[string]string{paxXattr + "user.note": "hi"}
	top := file("./", "")
	top.Mode = 0o711
	null := entry{tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""}
	im, err := ingest(t, s, bundleOf(t, layerOf(t, top, suid, null), layerOf(t, file("b", ""))), "x")
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Mount(t.Context(), im.ID, "k")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(root+"/su", &st); err != nil || st.Mode&0o7777 != 0o4755 || st.Uid != 12 || st.Gid != 34 {
		t.Errorf("su: mode %o owner %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
	}
	buf := make([]byte, 8)
	if n, err := unix.Getxattr(root+"/su", "user.note", buf); err != nil || string(buf[:n]) != "hi" {
		t.Errorf("user.note: %q, %v", buf[:n], err)
	}
	if err := unix.Stat(root+"/null", &st); err != nil || st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("null: device %d, %v", st.Rdev, err)
	}
	if err := unix.Stat(root, &st); err != nil || st.Mode&0o7777 != 0o711 {
		t.Errorf("root: mode %o, want the lowest layer's 711, %v", st.Mode, err)
	}
}

// TestTimes has directories come twice and go again: the last entry counts, and
// only for itself.
func TestTimes(t *testing.T) {
	t.Parallel()
	at := func(e entry, seconds int64) entry {
		e.ModTime = time.Unix(seconds, 0)
		return e
	}
	s := newStore(t)
	im, err := ingest(t, s, bundleOf(t, layerOf(t, at(file("twice/", ""), 1000), at(file("twice/f", "f"), 2000), at(file("twice/", ""), 3000),
		at(file("gone/", ""), 4000), at(file("gone/below/", ""), 5000), at(file("gone", "file"), 6000), at(symlink("link", "gone"), 7000))), "x")
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Mount(t.Context(), im.ID, "k")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{"twice": 3000, "twice/f": 2000, "gone": 6000, "link": 7000} {
		if i, err := os.Lstat(filepath.Join(root, name)); err != nil || i.ModTime().Unix() != want {
			t.Errorf("%s: times %v, want %d, %v", name, i.ModTime().Unix(), want, err)
		}
	}
}

func TestManyLayers(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var layers [][]byte
	for i := range 130 {
		layers = append(layers, layerOf(t, file(fmt.Sprintf("f%03d", i), "x")))
	}
	im, err := ingest(t, s, bundleOf(t, layers...), "many")
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Mount(t.Context(), im.ID, "k")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(listing(t, root)); n != 130 {
		t.Errorf("%d files, want 130", n)
	}
}
