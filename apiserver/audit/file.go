package audit

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// FileConfig says where events are written, one a line, and how many old files are kept.
type FileConfig struct {
	// Path of the file.
	Path string
	// MaxSize is the size in megabytes from which a new file is begun; zero: 100.
	MaxSize int
	// MaxAge is for how many days old files are kept; zero: for ever. MaxBackups is how many; zero: all.
	MaxAge, MaxBackups int
}

// file is the log backend.
type file struct {
	config FileConfig
	now    func() time.Time

	mu   sync.Mutex
	f    *os.File
	size int64
}

func newFile(c FileConfig, now func() time.Time) *file {
	if c.MaxSize == 0 {
		c.MaxSize = 100
	}
	return &file{config: c, now: now}
}

// Name implements Backend.
func (*file) Name() string { return "log" }

// Write implements Backend: the event is in the file when it returns.
func (l *file) Write(e *Event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	line = append(line, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil && l.size+int64(len(line)) > int64(l.config.MaxSize)<<20 {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.f == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	n, err := l.f.Write(line)
	l.size += int64(n)
	return err
}

func (l *file) open() error {
	if err := os.MkdirAll(filepath.Dir(l.config.Path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(l.config.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	about, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.f, l.size = f, about.Size()
	return nil
}

// stamp is the time in the names of old files, as upstream's.
const stamp = "2006-01-02T15-04-05.000"

// rotate gives the file its time as a name, and removes those that are too old or too many.
func (l *file) rotate() error {
	err := l.f.Close()
	l.f = nil
	if err != nil {
		return err
	}
	ext := filepath.Ext(l.config.Path)
	base := strings.TrimSuffix(l.config.Path, ext)
	if err := os.Rename(l.config.Path, base+"-"+l.now().UTC().Format(stamp)+ext); err != nil {
		return err
	}
	old, err := filepath.Glob(base + "-*" + ext)
	if err != nil {
		return err
	}
	slices.Sort(old)
	slices.Reverse(old) // the newest first: the names are times
	for i, name := range old {
		at, err := time.Parse(stamp, strings.TrimSuffix(strings.TrimPrefix(name, base+"-"), ext))
		if err != nil {
			continue // somebody else's
		}
		many := l.config.MaxBackups > 0 && i >= l.config.MaxBackups
		aged := l.config.MaxAge > 0 && l.now().Sub(at) > time.Duration(l.config.MaxAge)*24*time.Hour
		if many || aged {
			if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}

func (l *file) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
