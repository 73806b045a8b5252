package logs

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, path string, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, l := range lines {
		if _, err := io.WriteString(f, l+"\n"); err != nil {
			t.Fatal(err)
		}
	}
}

func entry(sec int, stream, tag, text string) string {
	return fmt.Sprintf("2026-01-02T03:04:%02d.5Z %s %s %s", sec, stream, tag, text)
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		line, text string
		partial    bool
		bad        bool
	}{
		{line: "2026-01-02T03:04:05.123456789Z stdout F hello\n", text: "hello\n"},
		{line: "2026-01-02T03:04:05Z stderr F \n", text: "\n"},
		{line: "2026-01-02T03:04:05Z stdout P half\n", text: "half", partial: true},
		{line: "2026-01-02T03:04:05Z stdout F:tag two words\n", text: "two words\n"},
		{line: "2026-01-02T03:04:05+02:00 stdout F x", text: "x\n"},
		{line: "", bad: true},
		{line: "now stdout F x\n", bad: true},
		{line: "2026-01-02T03:04:05Z stdin F x\n", bad: true},
		{line: "2026-01-02T03:04:05Z stdout Q x\n", bad: true},
	} {
		e, err := Parse([]byte(c.line))
		if (err != nil) != c.bad || err == nil && (string(e.Text) != c.text || e.Partial != c.partial) {
			t.Errorf("%q: %q %v %v", c.line, e.Text, e.Partial, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05Z stdout F x\n"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = Parse(b) })
}

func TestServe(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	write(t, path+".20260101-000000.000000", entry(1, "stdout", "F", "a"), entry(2, "stderr", "F", "b"))
	if err := compress(path + ".20260101-000000.000000"); err != nil {
		t.Fatal(err)
	}
	write(t, path+".20260101-000001.000000", entry(3, "stdout", "F", "c"))
	write(t, path, entry(4, "stdout", "P", "d1"), entry(4, "stdout", "F", "d2"), "garbage", entry(5, "stderr", "F", "e"))
	n := func(i int64) *int64 { return &i }
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"all", Options{}, "a\nb\nc\nd1d2\ne\n"},
		{"tail in the current file", Options{Tail: n(1)}, "e\n"},
		{"tail into compressed", Options{Tail: n(6)}, "b\nc\nd1d2\ne\n"},
		{"tail beyond all", Options{Tail: n(100)}, "a\nb\nc\nd1d2\ne\n"},
		{"tail nothing", Options{Tail: n(0)}, ""},
		{"since", Options{Since: time.Date(2026, 1, 2, 3, 4, 4, 0, time.UTC)}, "d1d2\ne\n"},
		{"stderr", Options{Stream: "Stderr"}, "b\ne\n"},
		{"limit", Options{LimitBytes: n(5)}, "a\nb\nc"},
		{"timestamps", Options{Tail: n(4), Timestamps: true}, "2026-01-02T03:04:04.5Z d1d2\n2026-01-02T03:04:05.5Z e\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Serve(t.Context(), &out, path, c.o, nil); err != nil || out.String() != c.want {
				t.Errorf("%q, want %q (%v)", out.String(), c.want, err)
			}
		})
	}
	if err := Serve(t.Context(), io.Discard, filepath.Join(dir, "none", "0.log"), Options{}, nil); err == nil {
		t.Error("a log that does not exist is served")
	}
}

// Everything that is written arrives once and in order, over many rotations, and the session ends with the container.
func TestFollowAcrossRotations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, entry(0, "stdout", "F", "0"))
	r, w := io.Pipe()
	ended := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		err := Serve(t.Context(), w, path, Options{Follow: true}, ended)
		w.CloseWithError(io.EOF)
		done <- err
	}()
	const lines = 300
	seen := make(chan int, lines)
	go func() {
		defer close(ended)
		rotation := Rotation{MaxSize: 1, MaxFiles: 400}
		for i := 1; i < lines; i++ {
			write(t, path, entry(i%60, "stdout", "F", fmt.Sprint(i)))
			if i%50 != 0 {
				continue
			}
			for at := range seen { // the reader is never more than one rotation behind
				if at >= i-40 {
					break
				}
			}
			if _, err := rotation.Apply(path, func() error { write(t, path); return nil }); err != nil {
				t.Error(err)
			}
		}
	}()
	in := bufio.NewScanner(r)
	n := 0
	for ; in.Scan(); n++ {
		if in.Text() != fmt.Sprint(n) {
			t.Fatalf("line %d is %s", n, in.Text())
		}
		seen <- n
	}
	if err := <-done; err != nil || n != lines {
		t.Fatalf("%d lines of %d: %v", n, lines, err)
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Serve(ctx, io.Discard, path, Options{Follow: true}, nil); err != nil && ctx.Err() == nil {
		t.Error(err)
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	r := Rotation{MaxSize: 10, MaxFiles: 3}
	for i := range 6 {
		write(t, path, entry(i, "stdout", "F", fmt.Sprint(i)))
		rotated, err := r.Apply(path, func() error { write(t, path); return nil })
		if err != nil || !rotated {
			t.Fatal(rotated, err)
		}
	}
	names, err := Files(path)
	if err != nil || len(names) != 3 {
		t.Fatal(names, err)
	}
	if !strings.HasSuffix(names[0], ".gz") || strings.HasSuffix(names[1], ".gz") {
		t.Error("all rotated files but the newest are compressed:", names)
	}
	if rotated, err := r.Apply(path, nil); rotated || err != nil {
		t.Error("an empty log was rotated", err)
	}
	write(t, path, entry(9, "stdout", "F", "kept"))
	if _, err := r.Apply(path, func() error { return io.ErrUnexpectedEOF }); err == nil {
		t.Error("no error")
	}
	if got := LastText(path, 10, 100); got != "kept\n" {
		t.Errorf("after a failed reopen the log has its name back; got %q", got)
	}
}

// A kubelet that is killed between rename and reopen leaves a log that the next goes on with.
func TestRotationThatWasBrokenOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app", "0.log")
	r := Rotation{MaxSize: 10, MaxFiles: 3}
	if rotated, err := r.Apply(path, nil); rotated || err != nil {
		t.Error("without a folder:", rotated, err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if rotated, err := r.Apply(path, nil); rotated || err != nil {
		t.Error("without a file:", rotated, err)
	}
	write(t, path, entry(0, "stdout", "F", "before"))
	if err := os.Rename(path, path+".20260101-000000.000000"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Apply(path, func() error { return io.ErrUnexpectedEOF }); err == nil {
		t.Error("no error")
	}
	if rotated, err := r.Apply(path, func() error { write(t, path); return nil }); !rotated || err != nil {
		t.Error(rotated, err)
	}
	if names, err := Files(path); err != nil || len(names) != 2 {
		t.Error(names, err)
	}
}

func TestLastText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	for i := range 1000 {
		write(t, path, entry(i%60, "stdout", "F", fmt.Sprint("line ", i)))
	}
	if got := LastText(path, 2, 100); got != "line 998\nline 999\n" {
		t.Errorf("%q", got)
	}
	if got := LastText(path, 80, 9); got != "line 999\n" {
		t.Errorf("%q", got)
	}
}
