package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

// What Kubernetes' libraries complain of is in the log where debug messages are wanted, and nowhere else.
func TestDemoted(t *testing.T) {
	defer klog.CaptureState().Restore()
	for level, want := range map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 2} {
		var out bytes.Buffer
		klog.SetSlogLogger(slog.New(demoted{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level})}))
		klog.ErrorS(errors.New("reset"), "Error on socket receive")
		klog.InfoS("something")
		if got := out.String(); strings.Count(got, "level=DEBUG") != want || strings.Count(got, "\n") != want {
			t.Errorf("at level %v: %q", level, got)
		}
	}
}
