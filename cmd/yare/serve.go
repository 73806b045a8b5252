package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/run"
)

func serverCommand() *cobra.Command {
	var file, name string
	var existing bool
	var j joinFlags
	c := &cobra.Command{
		Use: "server", GroupID: "cluster", Args: cobra.NoArgs,
		Short: "Run a cluster in the foreground, for systemd",
		Long: `Run a cluster in the foreground: what 'yare up' starts in the background. Settings come from a YAML file and
stay with the cluster once it is up with them: without --config they are those of its last start. 'yare config' prints those in
effect, 'yare config --help' says what each is.
SIGTERM ends the server and leaves the containers running.`,
		Example: `  yare config > /etc/yare.yaml
  yare server --config /etc/yare.yaml`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := requireRoot(); err != nil {
				return err
			}
			s, err := clusterSettings(cluster.Host{}, file, name)
			if err != nil {
				return err
			}
			if err := j.check(); err != nil {
				return err
			}
			if j.server != "" {
				if _, _, err := j.claim(c.Context(), s.wish(), s); err != nil {
					return err
				}
			}
			return serve(c.Context(), s, existing)
		},
	}
	c.Flags().StringVar(&file, "config", "", "YAML file with the settings")
	c.Flags().StringVar(&name, "name", "", "name of the cluster (in place of the file's)")
	c.Flags().BoolVar(&existing, "existing", false, "make no cluster: 'yare up' has, and it may have been removed since")
	_ = c.Flags().MarkHidden("existing")
	j.add(c)
	return c
}

// serve runs the cluster until ctx ends or a component fails.
func serve(ctx context.Context, config *settings, existing bool) error {
	h := cluster.Host{}
	var r *cluster.Record
	var err error
	if existing {
		r, err = h.Find(config.Name)
	} else {
		r, _, err = h.Claim(config.wish())
	}
	if err != nil {
		return err
	}
	if err := config.share(r); err != nil {
		return err
	}
	unlock, err := h.Lock(r)
	if err != nil {
		return err
	}
	defer unlock()
	notify, err := openNotify()
	if err != nil {
		return err
	}
	defer notify.close()
	log, err := config.logger(os.Stderr)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(slog.New(demoted{log.Handler()}))
	s := newServer(config.Config, r, log, notify)
	defer s.close()
	all, err := s.compose(ctx)
	if err != nil {
		return err
	}
	log.Info("starting", "cluster", r.Name, "version", version, "pid", os.Getpid())
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	err = all.Run(ctx, func() {
		// Settings with which it does not start are not those of the next start.
		if !r.HasSettings(config.text) {
			if err := r.KeepSettings(config.text); err != nil {
				fail(fmt.Errorf("keep settings for the next start: %w", err))
				return
			}
		}
		s.started.Store(true)
		_ = os.Remove(joinFile(r)) // it is a member now; what is left of the token ends by itself
		log.Info("ready", "cluster", r.Name)
		notify.say("ready")
		notify.close()
		run.Rest()
	})
	if err == nil || errors.Is(err, context.Canceled) {
		err = context.Cause(ctx)
	}
	if errors.Is(err, etcd.ErrRemoved) {
		_ = os.WriteFile(removedFile(r), nil, 0o600) // else 'yare down' asks for --force
		return fmt.Errorf("%w: 'yare down%s' removes what is left of it here; then it can join anew", err, nameFlag(r.Name))
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("stopped; containers go on", "cluster", r.Name)
	return nil
}

// notifier tells `yare up`, or whoever set YARE_NOTIFY_FD, how far the start is.
type notifier struct {
	mu sync.Mutex
	f  *os.File // nil when nobody listens
}

func openNotify() (*notifier, error) {
	text := os.Getenv(notifyFD)
	if text == "" {
		return &notifier{}, nil
	}
	os.Unsetenv(notifyFD)
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s=%q is not a file descriptor", notifyFD, text)
	}
	syscall.CloseOnExec(fd) // `yare up` hears of our end, not of a shim's
	return &notifier{f: os.NewFile(uintptr(fd), "notify")}, nil
}

// say writes a line. That nobody listens any more is no error.
func (n *notifier) say(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.f != nil {
		fmt.Fprintln(n.f, line)
	}
}

// close tells the listener that nothing more is to come.
func (n *notifier) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.f != nil {
		n.f.Close()
		n.f = nil
	}
}

// logger returns the log of all components.
func (c Config) logger(w *os.File) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, fmt.Errorf("logLevel: %w", err)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})), nil
}

// demoted passes on what Kubernetes' libraries log as debug messages: what matters of it they also return as errors.
type demoted struct{ slog.Handler }

func (d demoted) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle asks again: klog hands errors on without asking.
func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	if !d.Handler.Enabled(ctx, slog.LevelDebug) {
		return nil
	}
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

func (d demoted) WithAttrs(as []slog.Attr) slog.Handler { return demoted{d.Handler.WithAttrs(as)} }
func (d demoted) WithGroup(name string) slog.Handler    { return demoted{d.Handler.WithGroup(name)} }

// removedFile says that the other servers have removed this one.
func removedFile(r *cluster.Record) string { return filepath.Join(r.DataDir, "removed") }

func adminKubeconfig(r *cluster.Record) string { return filepath.Join(r.DataDir, "admin.kubeconfig") }
