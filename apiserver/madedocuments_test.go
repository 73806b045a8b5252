package apiserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// However many ask for a document at the same time, it is made once; it is kept for a minute, and its next edition takes its place.
func TestMadeDocuments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMadeDocuments()
		made, atOnce, most := 0, 0, 0
		make := func() ([]byte, error) {
			atOnce++
			made, most = made+1, max(most, atOnce)
			time.Sleep(time.Second)
			atOnce--
			return fmt.Append(nil, "text ", made), nil
		}
		kept := func() int {
			d.mu.Lock()
			defer d.mu.Unlock()
			return len(d.kept)
		}
		get := func(path, tag, want string) {
			t.Helper()
			if b, err := d.get(t.Context(), docKey{path, typeJSON}, tag, make); err != nil || string(b) != want {
				t.Errorf("%s of %s: %q %v, want %q", tag, path, b, err, want)
			}
		}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { get("a", "1", "text 1") })
		}
		wg.Wait()
		if made != 1 {
			t.Errorf("made %d times", made)
		}
		for n := range 5 {
			wg.Go(func() { _, _ = d.get(t.Context(), docKey{fmt.Sprint("other ", n), typeJSON}, "1", make) })
		}
		synctest.Wait()
		hasty, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := d.get(hasty, docKey{"other 0", typeJSON}, "1", make); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who does not wait: %v", err)
		}
		wg.Wait()
		if made != 6 || most != 1 {
			t.Errorf("made %d times, %d at once", made, most)
		}
		get("a", "2", "text 7")
		if n := kept(); n != 6 {
			t.Errorf("%d are kept", n)
		}
		get("a", "2", "text 7")
		time.Sleep(docKept + time.Second)
		get("a", "2", "text 8")
		if n := kept(); n != 1 {
			t.Errorf("%d are kept", n)
		}
		broken := errors.New("broken")
		if _, err := d.get(t.Context(), docKey{"b", typeJSON}, "1", func() ([]byte, error) { return nil, broken }); !errors.Is(err, broken) || kept() != 1 {
			t.Errorf("%v, %d are kept", err, kept())
		}
		time.Sleep(2 * docKept) // for the timers
	})
}
