package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var large = flag.Bool("large", false, "pull an image of 1 GB in place of one of 40 MB")

// TestPullWhole pulls images as they are in the world, from a registry with TLS
// and tokens, in each compression, and looks at all of what comes out.
func TestPullWhole(t *testing.T) {
	t.Parallel()
	size := 2 << 20
	if *large {
		size = 51 << 20
	}
	var twenty [][]byte
	for i := range 20 {
		twenty = append(twenty, noiseLayer(t, i, size))
	}
	for name, layers := range map[string][][]byte{
		"hello":     {layerOf(t, file("hello", "#!/bin/sh\necho hello\n"))},
		"debian":    debianLayers(t),
		"20 layers": twenty,
	} {
		for kind, packer := range map[string]func([]byte) []byte{"gzip": gzipped, "zstd": zstdded, "estargz": estargzed} {
			if testing.Short() && name == "debian" && kind != "gzip" {
				continue
			}
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				g := newGuarded(t)
				guard := g.meddle
				g.meddle = nil
				g.push(t, "1", []func([]byte) []byte{packer}, layers...)
				g.meddle = guard
				s := newStore(t, func(c *Config) { c.Registries = g.trust(t) })
				im, err := s.Pull(t.Context(), g.hostname()+"/app:1", PullOptions{Auth: Auth{Username: "me", Password: "secret"}})
				if err != nil {
					t.Fatal(err)
				}
				root, err := s.Mount(t.Context(), im.ID, "k")
				if err != nil {
					t.Fatal(err)
				}
				wantTree(t, root, layers)
			})
		}
	}
}

// estargzed packs a layer as eStargz does: gzip members one after the other, and
// at the end a table of contents, which who knows nothing of it unpacks as a file.
func estargzed(layer []byte) []byte {
	var b bytes.Buffer
	const chunk = 1 << 20
	for len(layer) > 0 {
		n := min(chunk, len(layer))
		b.Write(gzipped(layer[:n]))
		layer = layer[n:]
	}
	return b.Bytes()
}

// noiseLayer has files of half noise and half text.
func noiseLayer(t *testing.T, n, size int) []byte {
	random := rand.NewPCG(1, uint64(n))
	entries := []entry{file("data/", "")}
	for i := 0; size > 0; i++ {
		data := bytes.Repeat([]byte(fmt.Sprintf("layer %d file %d ", n, i)), 4000)
		for at := 0; at+16 < len(data); at += 16 {
			binary.LittleEndian.PutUint64(data[at:], random.Uint64())
		}
		entries = append(entries, file(fmt.Sprintf("data/%d-%d", n, i), string(data)))
		size -= len(data)
	}
	return layerOf(t, entries...)
}

// debianLayers are like Debian's root file system and what a package adds: ten
// thousand files, links of both kinds, modes and owners, deletions.
func debianLayers(t *testing.T) [][]byte {
	dir := func(name string) entry { return file(name+"/", "") }
	base := []entry{dir("etc"), dir("tmp"), dir("usr"), dir("usr/bin"), dir("usr/lib"), dir("usr/share"), dir("usr/share/doc"), dir("var"),
		dir("var/lib"), dir("var/lib/dpkg"), dir("var/lib/dpkg/info"), symlink("bin", "usr/bin"), symlink("lib", "usr/lib")}
	base[1].Mode = 0o1777
	for i := range 700 {
		doc := fmt.Sprintf("usr/share/doc/package%d", i)
		base = append(base, dir(doc), file(doc+"/copyright", strings.Repeat("copyright ", i)), file(doc+"/changelog.gz", strings.Repeat("x", i*7)),
			file(fmt.Sprintf("usr/bin/program%d", i), strings.Repeat("program", i*3)), file(fmt.Sprintf("usr/lib/lib%d.so.1.%d", i, i), strings.Repeat("lib", i*11)),
			symlink(fmt.Sprintf("usr/lib/lib%d.so", i), fmt.Sprintf("lib%d.so.1.%d", i, i)), symlink(fmt.Sprintf("usr/lib/lib%d.so.1", i), fmt.Sprintf("lib%d.so.1.%d", i, i)),
			hardlink(fmt.Sprintf("usr/bin/also%d", i), fmt.Sprintf("usr/bin/program%d", i)))
		for _, kind := range []string{"list", "md5sums", "postinst", "triggers", "shlibs", "symbols"} {
			base = append(base, file(fmt.Sprintf("var/lib/dpkg/info/package%d.%s", i, kind), strings.Repeat(kind, i%50)))
		}
	}
	su := file("usr/bin/su", "su")
	su.Mode, su.Gid = 0o4755, 42
	base = append(base, su, entry{tar.Header{Name: "etc/nothing", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""})
	update := []entry{dir("usr"), dir("usr/bin"), file("usr/bin/new", "new"), file("usr/bin/.wh.program7", ""), dir("usr/share"), dir("usr/share/doc"),
		file("usr/share/doc/.wh..wh..opq", ""), file("usr/share/doc/README", "gone"), file("lib/lib-late", "late"), file("etc/os-release", "ID=yare")}
	return [][]byte{layerOf(t, base...), layerOf(t, update...)}
}

// wantTree compares a tree with what the layers make, by the rules of the image
// format in their simplest form.
func wantTree(t *testing.T, root string, layers [][]byte) {
	t.Helper()
	want := map[string]string{}
	for _, l := range layers {
		applySimply(t, want, l)
	}
	got := 0
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(p, root+"/")
		have := fmt.Sprintf("%o %d:%d ", st.Mode&0o7777, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			have += fmt.Sprintf("file %x", sha256.Sum256(b))
		case unix.S_IFLNK:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			have += "link " + to
		case unix.S_IFDIR:
			have += "directory"
		default:
			have += fmt.Sprintf("device %d", st.Rdev)
		}
		if got++; have != want[name] {
			t.Errorf("%s is %s, want %q", name, have, want[name])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got != len(want) {
		t.Errorf("%d entries, want %d", got, len(want))
	}
}

// applySimply knows of links to directories only the debian layers' lib.
func applySimply(t *testing.T, tree map[string]string, layer []byte) {
	t.Helper()
	fresh := map[string]string{}
	r := tar.NewReader(bytes.NewReader(layer))
	for h, err := r.Next(); err == nil; h, err = r.Next() {
		name := strings.TrimSuffix(h.Name, "/")
		if rest, ok := strings.CutPrefix(name, "lib/"); ok {
			name = "usr/lib/" + rest
		}
		dir, base := filepath.Split(name)
		if gone, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
			for p := range tree {
				if base == whiteoutOpaque && strings.HasPrefix(p, dir) || p == dir+gone || strings.HasPrefix(p, dir+gone+"/") {
					delete(tree, p)
				}
			}
			continue
		}
		is := fmt.Sprintf("%o %d:%d ", h.Mode&0o7777, h.Uid, h.Gid)
		switch h.Typeflag {
		case tar.TypeReg:
			sum := sha256.New()
			if _, err := io.Copy(sum, r); err != nil {
				t.Fatal(err)
			}
			is += fmt.Sprintf("file %x", sum.Sum(nil))
		case tar.TypeSymlink:
			is += "link " + h.Linkname
		case tar.TypeDir:
			is += "directory"
		case tar.TypeLink:
			is = fresh[h.Linkname]
		default:
			is += fmt.Sprintf("device %d", unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
		}
		fresh[name] = is
	}
	maps.Copy(tree, fresh)
}
