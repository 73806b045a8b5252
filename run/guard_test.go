package run_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/yare-dev/yare/run"
)

// TestGuard has a panic end what panicked, and tells of it.
func TestGuard(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	done := false
	if got := run.Guard(log, "work", func() { done = true }); got != nil || !done || out.Len() != 0 {
		t.Errorf("%v %v %s", got, done, out.String())
	}
	if got := run.Guard(log, "work", func() { panic("broken") }); got != "broken" || !strings.Contains(out.String(), `msg="work panicked" err=broken stack=`) ||
		!strings.Contains(out.String(), "TestGuard") {
		t.Errorf("%v %s", got, out.String())
	}
}
