package oci

import (
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/plan"
)

// What an init says before it ends is heard, also if it ends without having read what was sent to it.
func TestLastWords(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]string{"no space left": "no space left", "": "init died"} {
		s, err := newSetup(slog.New(slog.DiscardHandler), "")
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		if err := linux.SendMessage(s.sync, []byte{plan.MsgEnter}); err != nil {
			t.Fatal(err)
		}
		if said != "" {
			if err := linux.SendMessage(s.theirs, append([]byte{plan.MsgError}, said...)); err != nil {
				t.Fatal(err)
			}
		}
		unix.Close(s.theirs)
		s.theirs = -1
		if err := s.serve(plan.MsgReady); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", said, err)
		}
	}
}
