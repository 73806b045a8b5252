package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	// Entries that begin so are AUFS's own and mean nothing in an image.
	whiteoutMeta = ".wh..wh."

	paxXattr = "SCHILY.xattr."

	xattrOpaque = "trusted.overlay.opaque"

	roomStep  = 4 << 20
	blockSize = 4 << 10 // what a file takes at least, in bytes
)

// usage is what a tree takes on disk.
type usage struct {
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
}

// applier makes the changes that a layer's archive lists to a tree.
//
// A layer is unpacked into a directory of its own, beside the layers below it,
// which may be on their way still. Most archives need no more. What one cannot
// know alone (a file's directory, the target of a hard link, what a whiteout
// removes) it finds in the merged tree of the layer over those below: an overlay
// of them, so that removing a file *is* the whiteout and links and parents of
// lower layers are found by the kernel.
type applier struct {
	tree   *tree
	limits Limits
	used   usage
	buf    []byte
	// lower, while it is set, gives the merged tree's root. It waits for the
	// layers below and is called once.
	lower func() (rootFD int, err error)
	// later are whiteouts that came before the merged tree.
	later []string
	// made are the paths of this layer, with the directories above them: an
	// opaque directory hides all others. nil where nothing is below.
	made map[string]struct{}
	// opaqued are the directories in which nothing of lower layers is left.
	opaqued map[string]struct{}
	// dirs get their times last: making their entries changes them.
	dirs []dirTimes
	// kept counts the bytes of names in memory.
	kept int64
	// rooted is set when the archive says whose the root directory is.
	rooted bool
	// ids are what owners become.
	ids idMaps
	// room, when set, fails when bytes more would fill the disk. It is asked once in
	// roomStep bytes: the last files may take that much of what is to stay free.
	room    func(bytes int64) error
	unasked int64
	// step is called for every entry.
	step func(name string) error
}

type dirTimes struct {
	path  string
	times []unix.Timespec
}

// newApplier takes over rootFD, the root of the tree. overLower tells that there
// are layers below.
func newApplier(rootFD int, limits Limits, overLower bool) *applier {
	a := &applier{tree: newTree(rootFD), limits: limits, buf: make([]byte, 256<<10), opaqued: map[string]struct{}{}}
	if overLower {
		a.made = map[string]struct{}{}
	}
	return a
}

// apply unpacks the uncompressed layer archive r. On an error the tree is to be
// thrown away.
func (a *applier) apply(ctx context.Context, r io.Reader) error {
	archive := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read its archive: %w", unreadable(err))
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if n >= a.limits.Entries {
			return fmt.Errorf("its archive has more than %d entries: %w", a.limits.Entries, ErrInvalid)
		}
		if err := a.entry(h, &contents{ctx: ctx, r: archive}); err != nil {
			return fmt.Errorf("unpack %q: %w", h.Name, err)
		}
	}
}

// contents are an entry's. A hole of a sparse file never ends by itself.
type contents struct {
	ctx context.Context
	r   io.Reader
}

func (c *contents) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read its archive: %w", unreadable(err))
	}
	return n, err
}

// unreadable gives errors of reading an archive their class.
func unreadable(err error) error {
	if errors.Is(err, ErrInvalid) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", err, ErrInvalid)
}

// finish makes what had to wait for the layers below, or for all entries.
func (a *applier) finish(ctx context.Context) (usage, error) {
	if len(a.later) > 0 {
		if err := a.merge(); err != nil {
			return usage{}, err
		}
	}
	// In the archive's order: of a directory that it has twice the last times count.
	// Setting times changes no other directory.
	for _, d := range a.dirs {
		if err := a.setDirTimes(d); err != nil {
			return usage{}, fmt.Errorf("set times of %q: %w", d.path, err)
		}
	}
	return a.used, ctx.Err()
}

// merge goes on in the merged tree.
func (a *applier) merge() error {
	fd, err := a.lower()
	if err != nil {
		return err
	}
	a.tree.close()
	a.tree, a.lower = newTree(fd), nil
	for _, p := range a.later {
		if err := a.whiteout(p, path.Base(p)); err != nil {
			return fmt.Errorf("unpack %q: %w", p, err)
		}
	}
	a.later = nil
	return nil
}

// remember counts a name that stays in memory.
func (a *applier) remember(name string) error {
	a.kept += int64(len(name)) + 64
	if a.kept > a.limits.Names {
		return fmt.Errorf("names of more than %d bytes to remember: %w", a.limits.Names, ErrInvalid)
	}
	return nil
}

// inside turns an archive's name into a path of the tree. Names from the root
// ("/etc") mean the image's root; names that climb are refused, even where they
// would be harmless, since only an attacker writes them.
func inside(name string) (string, error) {
	if len(name) >= unix.PathMax || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("name of %d bytes: %w", len(name), ErrInvalid)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("the name leads out of the image: %w", ErrInvalid)
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func (a *applier) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	p, err := inside(h.Name)
	if err != nil {
		return err
	}
	if a.step != nil {
		if err := a.step(p); err != nil {
			return err
		}
	}
	if base := path.Base(p); strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteout(p, base)
	}
	if err := a.note(p); err != nil {
		return err
	}
	a.used.Inodes++
	if p == "" {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("the root must be a directory: %w", ErrInvalid)
		}
		a.rooted = true
		return a.finishEntry(h, p, a.tree.root, ".")
	}
	err = a.place(h, r, p)
	if errors.Is(err, unix.ENOENT) && a.lower != nil {
		// A directory, or a link's target, that is not this layer's own.
		if err = a.merge(); err == nil {
			err = a.place(h, r, p)
		}
	}
	return err
}

// place makes one entry in its directory. ENOENT comes before it reads r.
func (a *applier) place(h *tar.Header, r io.Reader, p string) error {
	dirFD, base, err := a.tree.parent(p, a.lower == nil)
	if err != nil {
		return fmt.Errorf("resolve its directory: %w", err)
	}
	fd, err := a.make(h, dirFD, base)
	if errors.Is(err, unix.EEXIST) {
		fd, err = a.replace(h, dirFD, base)
	}
	switch {
	case err != nil:
		return err
	case fd >= 0:
		return a.fill(h, r, fd)
	case h.Typeflag == tar.TypeLink:
		return nil // it has what its target has
	}
	return a.finishEntry(h, p, dirFD, base)
}

// make makes an entry, for a file with the descriptor to write to, else -1. Where
// there is one already it fails with EEXIST and changes nothing.
func (a *applier) make(h *tar.Header, dirFD int, base string) (fd int, err error) {
	switch h.Typeflag {
	case tar.TypeDir:
		return -1, unix.Mkdirat(dirFD, base, 0o755)
	case tar.TypeReg, tar.TypeGNUSparse:
		return unix.Openat(dirFD, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	case tar.TypeSymlink:
		return -1, unix.Symlinkat(h.Linkname, dirFD, base)
	case tar.TypeLink:
		return -1, a.link(h, dirFD, base)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return -1, mknod(h, dirFD, base)
	}
	return -1, fmt.Errorf("entries of type %q are not known: %w", h.Typeflag, ErrInvalid)
}

// replace makes an entry where there is one. What is there makes way, except a
// directory for a directory.
func (a *applier) replace(h *tar.Header, dirFD int, base string) (fd int, err error) {
	was, err := kind(dirFD, base)
	if err != nil {
		return -1, err
	}
	isDir := h.Typeflag == tar.TypeDir
	if isDir && was == unix.S_IFDIR {
		return -1, nil
	}
	if err := a.tree.remove(dirFD, base); err != nil {
		return -1, fmt.Errorf("replace: %w", err)
	}
	fd, err = a.make(h, dirFD, base)
	if err == nil && isDir && a.lower != nil {
		// What was there hid a lower layer's directory: it stays hidden.
		err = setOpaque(dirFD, base)
	}
	return fd, err
}

// setOpaque marks a directory as overlayfs does.
func setOpaque(dirFD int, base string) error {
	fd, err := unix.Openat(dirFD, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsetxattr(fd, xattrOpaque, []byte("y"), 0)
}

// fill writes a new file, which it closes.
func (a *applier) fill(h *tar.Header, r io.Reader, fd int) (err error) {
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if h.Size > a.limits.Bytes-a.used.Bytes {
		return fmt.Errorf("the layer is larger than %d bytes: %w", a.limits.Bytes, ErrInvalid)
	}
	a.used.Bytes += h.Size
	if err := a.reserve(h.Size); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(fdWriter(fd), r, a.buf); err != nil {
		return err
	}
	if err := a.attributes(h, fd); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, "", times(h), unix.AT_EMPTY_PATH)
}

// reserve asks for room for a file, unless it and those since the last one that
// asked are small.
func (a *applier) reserve(bytes int64) error {
	a.unasked += bytes + blockSize
	if a.room == nil || a.unasked < roomStep {
		return nil
	}
	a.unasked = 0
	return a.room(bytes)
}

// fdWriter writes to a descriptor. An os.File costs two more system calls, and
// memory, for each of the files of a layer.
type fdWriter int

func (fd fdWriter) Write(p []byte) (done int, err error) {
	for done < len(p) {
		n, err := unix.Write(int(fd), p[done:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return done, fmt.Errorf("write: %w", err)
		case n == 0:
			return done, io.ErrShortWrite
		}
		done += n
	}
	return done, nil
}

func (a *applier) link(h *tar.Header, dirFD int, base string) error {
	target, err := inside(h.Linkname)
	if err != nil {
		return fmt.Errorf("link to %q: %w", h.Linkname, err)
	}
	dir, name := path.Split(target)
	toFD, err := a.tree.open(strings.TrimSuffix(dir, "/"), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("link to %q: %w", h.Linkname, err)
	}
	defer unix.Close(toFD)
	if err := unix.Linkat(toFD, name, dirFD, base, 0); err != nil {
		return fmt.Errorf("link to %q: %w", h.Linkname, err)
	}
	return nil
}

func mknod(h *tar.Header, dirFD int, base string) error {
	var mode uint32
	switch h.Typeflag {
	case tar.TypeChar:
		mode = unix.S_IFCHR
		if h.Devmajor == 0 && h.Devminor == 0 {
			return fmt.Errorf("device 0:0 is overlayfs's own: %w", ErrInvalid)
		}
	case tar.TypeBlock:
		mode = unix.S_IFBLK
	case tar.TypeFifo:
		mode = unix.S_IFIFO
	}
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	return unix.Mknodat(dirFD, base, mode|0o600, int(dev))
}

// permissions are the mode bits that an image may set.
func permissions(h *tar.Header) uint32 { return uint32(h.Mode) & 0o7777 }

func times(h *tar.Header) []unix.Timespec {
	at := h.AccessTime
	if at.IsZero() {
		at = h.ModTime
	}
	return []unix.Timespec{timespec(at), timespec(h.ModTime)}
}

func timespec(t time.Time) unix.Timespec {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return unix.Timespec{}
	}
	return ts
}

// attributes sets owner, extended attributes and mode of an open file, in this
// order: a change of owner clears set-user-ID and capabilities.
func (a *applier) attributes(h *tar.Header, fd int) error {
	if err := unix.Fchown(fd, a.ids.uid(h.Uid), a.ids.gid(h.Gid)); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", h.Uid, h.Gid, err)
	}
	if err := setXattrs(h, fd); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, permissions(h)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return nil
}

// finishEntry sets the same of an entry that is not open.
func (a *applier) finishEntry(h *tar.Header, p string, dirFD int, base string) error {
	if h.Typeflag == tar.TypeDir {
		fd, err := unix.Openat(dirFD, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := a.remember(p); err != nil {
			return err
		}
		a.dirs = append(a.dirs, dirTimes{path: p, times: times(h)})
		return a.attributes(h, fd)
	}
	if err := unix.Fchownat(dirFD, base, a.ids.uid(h.Uid), a.ids.gid(h.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", h.Uid, h.Gid, err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(dirFD, base, permissions(h), 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return unix.UtimesNanoAt(dirFD, base, times(h), unix.AT_SYMLINK_NOFOLLOW)
}

func (a *applier) setDirTimes(d dirTimes) error {
	fd, err := a.tree.open(d.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // it, or what it was in, was replaced by a later entry
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.UtimesNanoAt(fd, "", d.times, unix.AT_EMPTY_PATH)
}

// setXattrs sets the extended attributes that mean something inside a
// container. Overlayfs's own are refused: they would redirect lookups to any
// directory of the host's file system.
func setXattrs(h *tar.Header, fd int) error {
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			return fmt.Errorf("attribute %s is overlayfs's own: %w", name, ErrInvalid)
		}
		if name != "security.capability" && !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(v), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}

// whiteout removes what a lower layer has at p, or in p's directory.
func (a *applier) whiteout(p, base string) error {
	dir := strings.TrimSuffix(strings.TrimSuffix(p, base), "/")
	name := strings.TrimPrefix(base, whiteoutPrefix)
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("whiteout of nothing: %w", ErrInvalid)
	case base != whiteoutOpaque && strings.HasPrefix(base, whiteoutMeta) || a.made == nil:
		return nil
	case a.lower != nil:
		a.later = append(a.later, p)
		return a.remember(p)
	case base == whiteoutOpaque:
		return a.opaque(dir)
	}
	if p := path.Join(dir, name); a.has(p) {
		return a.opaque(p) // what this layer has there stays
	}
	fd, err := a.tree.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return a.tree.remove(fd, name)
}

// note remembers that the layer has p.
func (a *applier) note(p string) error {
	for a.made != nil && !a.has(p) {
		if err := a.remember(p); err != nil {
			return err
		}
		a.made[p] = struct{}{}
		if p == "" {
			return nil
		}
		p = strings.TrimPrefix(path.Dir("/"+p), "/")
	}
	return nil
}

func (a *applier) has(p string) bool {
	_, ok := a.made[p]
	return ok
}

// opaque removes everything in dir that this layer has not made. What is not a
// directory is left alone.
func (a *applier) opaque(dir string) error {
	if _, ok := a.opaqued[dir]; ok {
		return nil
	}
	if err := a.remember(dir); err != nil {
		return err
	}
	a.opaqued[dir] = struct{}{}
	fd, err := a.tree.open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	// Not all at once: a directory of lower layers may have any number of names. Their removal may make a file system skip others, which
	// the next round finds.
	for removed := -1; removed != 0; {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if removed, err = a.clear(f, dir); err != nil {
			return err
		}
	}
	return nil
}

// clear removes what is in dir, which f is, and not made by this layer, and counts it.
func (a *applier) clear(f *os.File, dir string) (removed int, err error) {
	for {
		names, err := f.Readdirnames(1024)
		if errors.Is(err, io.EOF) {
			return removed, nil
		}
		if err != nil {
			return removed, err
		}
		for _, n := range names {
			// A directory of both keeps only what is new in it.
			if below := path.Join(dir, n); a.has(below) {
				err = a.opaque(below)
			} else {
				err = a.tree.remove(int(f.Fd()), n)
				removed++
			}
			if err != nil {
				return removed, err
			}
		}
	}
}
