package server

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// maxLine is the longest piece of a line in one log entry; longer lines are
// written in pieces tagged P, the last one F.
const maxLine = 16 << 10

// log is a container's log file in the CRI format:
//
//	2006-01-02T15:04:05.999999999Z stdout F text of the line
type log struct {
	fd   int // -1: no log
	path string
}

// open opens the file for appending, and then lets go of the one before.
func (l *log) open(path string) error {
	if path == "" {
		return nil
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return linux.Wrap("open log", path, err)
	}
	linux.CloseAll(l.fd)
	l.fd, l.path = fd, path
	return nil
}

// write logs the lines in data and keeps the unfinished one with the output.
func (l *log) write(o *output, data []byte) {
	if l.fd < 0 {
		return
	}
	now := time.Now().UTC()
	entries := o.t.s.logLine[:0]
	for len(data) > 0 {
		if len(entries) > maxLine { // the buffer stays: it must not grow with what is read
			l.put(entries)
			entries = entries[:0]
		}
		end := bytes.IndexByte(data, '\n')
		room := maxLine - len(o.line)
		switch {
		case end >= 0 && end <= room:
			entries = appendEntry(entries, now, o.name, 'F', o.line, data[:end])
			o.line, data = o.line[:0], data[end+1:]
		case len(data) > room:
			entries = appendEntry(entries, now, o.name, 'P', o.line, data[:room])
			o.line, data = o.line[:0], data[room:]
		default:
			o.line, data = append(o.line, data...), nil
		}
	}
	if len(o.line) == 0 {
		o.line = nil // most containers never write half lines: give it back
	}
	l.put(entries)
	o.t.s.logLine = entries
}

// flush logs an unfinished line, as one that goes on: readers must not add a newline that was never written.
func (l *log) flush(o *output) {
	if l.fd < 0 || len(o.line) == 0 {
		return
	}
	entries := appendEntry(o.t.s.logLine[:0], time.Now().UTC(), o.name, 'P', o.line, nil)
	o.line = nil
	l.put(entries)
	o.t.s.logLine = entries
}

// put writes to the file. A full disk loses log entries, never the container.
func (l *log) put(entries []byte) {
	for len(entries) > 0 {
		n, err := unix.Write(l.fd, entries)
		if err != nil && err != unix.EINTR {
			return
		}
		entries = entries[max(n, 0):]
	}
}

func appendEntry(b []byte, at time.Time, stream string, tag byte, content ...[]byte) []byte {
	b = at.AppendFormat(b, time.RFC3339Nano)
	b = append(b, ' ')
	b = append(b, stream...)
	b = append(b, ' ', tag, ' ')
	for _, c := range content {
		b = append(b, c...)
	}
	return append(b, '\n')
}
