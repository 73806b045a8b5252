// Package logs reads, serves and rotates the log files that the runtime writes for containers. It replaces upstream's
// kuberuntime logs and container log manager.
//
// A line of a file is "<RFC 3339 time> <stdout|stderr> <F|P> <text>"; P marks a piece of a line whose end follows. The file
// being written is N.log; rotated ones are N.log.<time>, and all but the newest of these end in .gz.
//
// Invariants: reading goes on across a rotation without losing or repeating a line; nothing is read whole into memory.
package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// Entry is one record of a log.
type Entry struct {
	Time    time.Time
	Stream  string // stdout or stderr
	Partial bool   // the line goes on in the next entry of the stream
	Text    []byte // with the closing newline, unless Partial
}

var errLine = errors.New("not a line of a container log")

// Parse reads one line, with or without its newline. Text is a part of line.
func Parse(line []byte) (Entry, error) {
	var e Entry
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return e, errLine
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return e, fmt.Errorf("%w: %v", errLine, err)
	}
	stream, rest, ok := bytes.Cut(rest, []byte(" "))
	if !ok || string(stream) != "stdout" && string(stream) != "stderr" {
		return e, fmt.Errorf("%w: no stream", errLine)
	}
	tags, text, _ := bytes.Cut(rest, []byte(" "))
	tag, _, _ := bytes.Cut(tags, []byte(":"))
	tag = bytes.TrimRight(tag, "\n")
	e = Entry{Time: t, Stream: string(stream), Text: text}
	switch string(tag) {
	case "P":
		e.Partial = true
		e.Text = bytes.TrimSuffix(text, []byte("\n"))
	case "F":
		if !bytes.HasSuffix(e.Text, []byte("\n")) {
			e.Text = append(bytes.Clone(e.Text), '\n')
		}
	default:
		return e, fmt.Errorf("%w: tag %q", errLine, tag)
	}
	return e, nil
}

// tailOffset returns where the last n lines of the file begin. Negative n is all of it.
func tailOffset(f *os.File, n int64) (int64, error) {
	if n < 0 {
		return 0, nil
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return end, err
	}
	const block = 32 << 10
	buf := make([]byte, block)
	seen := int64(0)
	for at := end; at > 0; {
		size := min(at, block)
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil && err != io.EOF {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 {
				continue
			}
			if seen++; seen == n {
				return at + i + 1, nil
			}
		}
	}
	return 0, nil
}

// LastText returns the text of the last lines of a log, at most maxBytes of it; "" when it cannot be read.
func LastText(path string, maxLines int64, maxBytes int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	at, err := tailOffset(f, maxLines)
	if err != nil {
		return ""
	}
	const limit = 1 << 20
	b, err := io.ReadAll(io.NewSectionReader(f, at, limit))
	if err != nil {
		return ""
	}
	var out strings.Builder
	for line := range bytes.Lines(b) {
		if e, err := Parse(line); err == nil {
			out.Write(e.Text)
		}
	}
	s := out.String()
	if len(s) > maxBytes {
		s = s[len(s)-maxBytes:]
	}
	return s
}
