package logs

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/yare-dev/yare/kubelet/fsevents"
)

// Options choose what of a log is served.
type Options struct {
	Tail       *int64 // lines from the end
	Since      time.Time
	Timestamps bool
	LimitBytes *int64
	Follow     bool
	Stream     string // "stdout", "stderr", or both
}

// Serve writes the log whose current file is path to out, rotated files first. When following, it goes on until ctx
// ends or, after ended is closed, all is written.
func Serve(ctx context.Context, out io.Writer, path string, o Options, ended <-chan struct{}) error {
	var events *fsevents.Watcher
	if o.Follow {
		var err error
		if events, err = fsevents.Watch(filepath.Dir(path)); err != nil {
			return err
		}
		defer events.Close()
	}
	files, err := open(path)
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	r := &reader{ctx: ctx, o: o, out: out, left: -1}
	if o.LimitBytes != nil {
		r.left = *o.LimitBytes
	}
	if err := r.history(files); err != nil || len(files) == 0 || !o.Follow {
		return finish(err)
	}
	last := files[len(files)-1]
	files = files[:len(files)-1]
	return finish(r.follow(last, path, events, ended))
}

// errEnough says that the limit of bytes is reached.
var errEnough = errors.New("limit reached")

func finish(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// open opens the log's files, oldest first. A rotation in between shows as another list of names; then it starts over.
func open(path string) ([]*os.File, error) {
	for {
		names, err := Files(path)
		if err != nil {
			return nil, err
		}
		var files []*os.File
		gone := false
		for _, n := range names {
			f, err := os.Open(n)
			if errors.Is(err, os.ErrNotExist) {
				gone = true
				continue
			}
			if err != nil {
				closeAll(files)
				return nil, err
			}
			files = append(files, f)
		}
		again, err := Files(path)
		if err == nil && !gone && slices.Equal(names, again) {
			return files, nil
		}
		closeAll(files)
		if err != nil {
			return nil, err
		}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Files returns the log's files, oldest first, the current one last.
func Files(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var rotated []string
	current := false
	for _, e := range entries {
		switch name := e.Name(); {
		case name == filepath.Base(path):
			current = true
		case strings.HasPrefix(name, filepath.Base(path)+".") && !strings.HasSuffix(name, ".tmp"):
			rotated = append(rotated, filepath.Join(filepath.Dir(path), name))
		}
	}
	slices.Sort(rotated) // by the time in the name; one in compression is there twice for a moment
	rotated = slices.DeleteFunc(rotated, func(n string) bool {
		plain, isGz := strings.CutSuffix(n, ".gz")
		return isGz && slices.Contains(rotated, plain)
	})
	if current {
		rotated = append(rotated, path)
	}
	return rotated, nil
}

// reader writes entries out, as chosen.
type reader struct {
	ctx  context.Context
	o    Options
	out  io.Writer
	left int64 // bytes; negative: no limit
	skip int64 // lines
	mid  map[string]bool
}

// history writes what is in the files.
func (r *reader) history(files []*os.File) error {
	from := 0
	if r.o.Tail != nil {
		if *r.o.Tail == 0 {
			if len(files) > 0 {
				_, err := files[len(files)-1].Seek(0, io.SeekEnd)
				return err
			}
			return nil
		}
		var err error
		if from, err = r.position(files, *r.o.Tail); err != nil {
			return err
		}
	}
	for i := from; i < len(files); i++ {
		in, err := stream(files[i])
		if err != nil {
			return err
		}
		if err := r.copy(in); err != nil {
			return err
		}
	}
	return nil
}

// position finds the file in which the last n lines begin, and puts it there or notes how many lines of it to skip.
func (r *reader) position(files []*os.File, n int64) (int, error) {
	for i := len(files) - 1; i >= 0; i-- {
		lines, err := count(files[i])
		if err != nil {
			return 0, err
		}
		if lines < n {
			n -= lines
			continue
		}
		if strings.HasSuffix(files[i].Name(), ".gz") {
			r.skip = lines - n
			return i, nil
		}
		at, err := tailOffset(files[i], n)
		if err != nil {
			return 0, err
		}
		_, err = files[i].Seek(at, io.SeekStart)
		return i, err
	}
	return 0, nil
}

// stream returns the file's content from where it stands.
func stream(f *os.File) (*bufio.Reader, error) {
	if !strings.HasSuffix(f.Name(), ".gz") {
		return bufio.NewReaderSize(f, 64<<10), nil
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	return bufio.NewReaderSize(z, 64<<10), nil
}

func count(f *os.File) (int64, error) {
	in, err := stream(f)
	if err != nil {
		return 0, err
	}
	var n int64
	buf := make([]byte, 64<<10)
	for {
		m, err := in.Read(buf)
		for _, b := range buf[:m] {
			if b == '\n' {
				n++
			}
		}
		if err == io.EOF {
			_, err = f.Seek(0, io.SeekStart)
			return n, err
		}
		if err != nil {
			return 0, err
		}
	}
}

// copy writes entries until the end of in. A last line without its newline is left out; it is still being written.
func (r *reader) copy(in *bufio.Reader) error {
	for {
		if r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if r.skip > 0 {
			r.skip--
			continue
		}
		if err := r.line(line); err != nil {
			return err
		}
	}
}

func (r *reader) line(line []byte) error {
	e, err := Parse(line)
	if err != nil {
		return nil // not written by a runtime: nothing that could be shown
	}
	if r.o.Stream != "" && !strings.EqualFold(r.o.Stream, e.Stream) && !strings.EqualFold(r.o.Stream, "All") || e.Time.Before(r.o.Since) {
		return nil
	}
	text := e.Text
	if r.o.Timestamps && !r.mid[e.Stream] {
		text = append([]byte(e.Time.Format(time.RFC3339Nano)+" "), text...)
	}
	if r.mid == nil {
		r.mid = map[string]bool{}
	}
	r.mid[e.Stream] = e.Partial // the rest of a line has no time of its own
	if r.left >= 0 && int64(len(text)) > r.left {
		text = text[:r.left]
	}
	if _, err := r.out.Write(text); err != nil {
		return err
	}
	if r.left >= 0 {
		if r.left -= int64(len(text)); r.left == 0 {
			return errEnough
		}
	}
	return nil
}

// follow goes on with the current file, and with the one that takes its place.
func (r *reader) follow(f *os.File, path string, events *fsevents.Watcher, ended <-chan struct{}) error {
	defer func() { f.Close() }()
	var partial []byte
	buf := make([]byte, 64<<10)
	rest := func() error { // writes what there is in f
		for {
			n, err := f.Read(buf)
			if err != nil && err != io.EOF {
				return err
			}
			if n == 0 {
				return nil
			}
			partial = append(partial, buf[:n]...)
			for {
				i := slices.Index(partial, '\n')
				if i < 0 {
					break
				}
				if err := r.line(partial[:i+1]); err != nil {
					return err
				}
				partial = partial[i+1:]
			}
		}
	}
	over := false
	for {
		if err := rest(); err != nil {
			return err
		}
		if next := replaced(f, path); next != nil {
			// What was written between our last read and the rename is in the old file.
			if err := rest(); err != nil {
				next.Close()
				return err
			}
			f.Close()
			f, partial = next, nil
			continue
		}
		if over {
			return nil
		}
		select {
		case <-events.C:
		case <-ended:
			over, ended = true, nil // read to the end once more
		case <-r.ctx.Done():
			return nil
		}
	}
}

// replaced opens the file that comes after f, nil while f is the current one. A reader that slept through more rotations
// than keep files uncompressed goes on with the oldest that is.
func replaced(f *os.File, path string) *os.File {
	if info, err := os.Stat(path); err != nil || number(info) == inode(f) {
		return nil // also between rename and reopen
	}
	files, err := open(path)
	if err != nil {
		return nil
	}
	at := slices.IndexFunc(files, func(o *os.File) bool { return inode(o) == inode(f) }) + 1
	for at < len(files)-1 && strings.HasSuffix(files[at].Name(), ".gz") {
		at++
	}
	if at >= len(files) {
		closeAll(files)
		return nil
	}
	closeAll(files[:at])
	closeAll(files[at+1:])
	return files[at]
}

func inode(f *os.File) uint64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return number(info)
}

func number(info os.FileInfo) uint64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Ino
}
