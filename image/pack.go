package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// packer writes a directory as a layer archive.
type packer struct {
	out  *tar.Writer
	root string
	// links are the files with several names, by device and inode.
	links map[[2]uint64]string
}

// pack writes dir's contents to w as an uncompressed layer archive. The same
// tree gives the same bytes. Overlayfs's deletions become the image format's
// whiteouts; sockets, which no archive can hold, are left out.
func pack(ctx context.Context, dir string, w io.Writer) error {
	p := &packer{out: tar.NewWriter(w), root: dir, links: map[[2]uint64]string{}}
	err := filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return p.entry(file)
	})
	if err != nil {
		return fmt.Errorf("pack %s: %w", dir, err)
	}
	return p.out.Close()
}

func (p *packer) entry(file string) error {
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		return fmt.Errorf("stat %s: %w", file, err)
	}
	name, err := filepath.Rel(p.root, file)
	if err != nil {
		return err
	}
	h := &tar.Header{
		Name: name,
		Mode: int64(st.Mode & 0o7777),
		Uid:  int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, 0),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return p.directory(file, h)
	case unix.S_IFREG:
		return p.regular(file, h, &st)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(file); err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			return p.mark(path.Join(path.Dir(name), whiteoutPrefix+path.Base(name)))
		}
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil
	}
	return p.out.WriteHeader(h)
}

// mark writes a whiteout.
func (p *packer) mark(name string) error {
	return p.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0)})
}

func (p *packer) directory(file string, h *tar.Header) error {
	if err := readXattrs(file, h); err != nil {
		return err
	}
	if err := p.out.WriteHeader(h); err != nil {
		return err
	}
	buf := make([]byte, 1)
	if n, err := unix.Lgetxattr(file, xattrOpaque, buf); err == nil && n == 1 && buf[0] == 'y' {
		return p.mark(path.Join(h.Name, whiteoutOpaque))
	}
	return nil
}

func (p *packer) regular(file string, h *tar.Header, st *unix.Stat_t) error {
	h.Typeflag = tar.TypeReg
	if st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := p.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return p.out.WriteHeader(h)
		}
		p.links[id] = h.Name
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close()
	h.Size = st.Size
	if err := readXattrs(file, h); err != nil {
		return err
	}
	if err := p.out.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.CopyN(p.out, f, st.Size); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}

// readXattrs notes the attributes that setXattrs would set.
func readXattrs(file string, h *tar.Header) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(file, buf)
	if errors.Is(err, unix.ENOTSUP) || (err == nil && n == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list attributes of %s: %w", file, err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	for _, name := range names {
		if name != "security.capability" && !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") ||
			strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(file, name, buf)
		if err != nil {
			return fmt.Errorf("read attribute %s of %s: %w", name, file, err)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+name] = string(buf[:n])
	}
	return nil
}
