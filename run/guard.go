package run

import (
	"log/slog"
	"runtime/debug"
)

// Guard calls f and returns what it panicked with, nil where it did not; a panic is logged with its stack. It is for goroutines that work
// for one request or on one thing, beside others that must go on: there a panic would end the process.
func Guard(log *slog.Logger, what string, f func()) (panicked any) {
	defer func() {
		if panicked = recover(); panicked != nil {
			log.Error(what+" panicked", "err", panicked, "stack", string(debug.Stack()))
		}
	}()
	f()
	return nil
}
