// Package fsevents tells when something in a folder changes, by inotify. It does not say what: who waits looks for
// himself, which is right after lost and after merged events too.
package fsevents

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Watcher watches one folder, not what is below it.
type Watcher struct {
	// C gets a value after each change; changes that nobody waited for are one.
	C <-chan struct{}

	file *os.File
	wg   sync.WaitGroup
}

// Watch starts to watch dir for entries that are made, removed, renamed, or written to. The caller closes the Watcher.
func Watch(dir string) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	const mask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_CLOSE_WRITE |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	c := make(chan struct{}, 1)
	w := &Watcher{C: c, file: os.NewFile(uintptr(fd), "inotify")}
	w.wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			if _, err := w.file.Read(buf); err != nil {
				return // closed
			}
			select {
			case c <- struct{}{}:
			default:
			}
		}
	})
	return w, nil
}

// Close ends the watch.
func (w *Watcher) Close() error {
	err := w.file.Close()
	w.wg.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
