package etcd

import (
	"errors"
	"log/slog"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// quiet returns a zap logger that passes warnings and errors on to log. What etcd calls fatal goes to fatal instead of
// ending the process; the goroutine that said so ends. fatal may be nil where nothing can be fatal.
func quiet(log *slog.Logger, fatal chan<- error) *zap.Logger {
	c := &bridge{log: log}
	h := &hook{fatal: fatal}
	return zap.New(c, zap.WithFatalHook(h), zap.WithPanicHook(h))
}

// bridge is a zapcore.Core over slog.
type bridge struct {
	log *slog.Logger
}

func (b *bridge) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (b *bridge) With(fields []zapcore.Field) zapcore.Core {
	return &bridge{b.log.With(attributes(fields)...)}
}

func (b *bridge) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return ce.AddCore(e, b)
	}
	return ce
}

func (b *bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if expected(e.Message) {
		return nil
	}
	// etcd's words are an attribute: messages of ours are constants.
	args := append(attributes(fields), "text", e.Message)
	if e.Level > zapcore.WarnLevel {
		b.log.Error("etcd reports an error", args...)
	} else {
		b.log.Warn("etcd warns", args...)
	}
	return nil
}

func (b *bridge) Sync() error { return nil }

// expected says that a warning tells of nothing but how we use etcd, alone, in this process, from the first moment on; or of nothing new.
func expected(text string) bool {
	switch text {
	case "Failed to detect schema version", "failed to update storage version", // a new database has none until its first term
		"failed to publish local member to cluster through raft": // tried again until the log is replayed
		return true
	case "Running http and grpc server on single port. This is not recommended for production.",
		"simple token is not cryptographically signed",
		"alarm raised", "disarmed alarm", "alarm disarmed":
		return true
	case "failed to reach the peer URL", "failed to get version", "prober detected unhealthy status":
		return true // every few seconds as long as a member is down; that it became so is told by another one
	}
	return false
}

func attributes(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	out := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		out = append(out, k, v)
	}
	return out
}

// hook hears what etcd calls fatal.
type hook struct {
	once  sync.Once
	fatal chan<- error
}

func (h *hook) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	h.once.Do(func() {
		err := errors.New(ce.Message)
		for _, f := range fields {
			if cause, ok := f.Interface.(error); ok {
				err = errors.Join(err, cause)
			}
		}
		if h.fatal != nil {
			h.fatal <- err
		}
	})
	zapcore.WriteThenGoexit.OnWrite(ce, fields)
}
