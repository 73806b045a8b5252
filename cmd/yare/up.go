package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/run"
)

// notifyFD is the descriptor on which `yare up` hears from the server that it starts: a line for each
// component that became ready, "ready" at last. Its end without that line means that the server ended.
const notifyFD = "YARE_NOTIFY_FD"

func upCommand() *cobra.Command {
	var w cluster.Wish
	var file string
	var ephemeral bool
	var j joinFlags
	c := &cobra.Command{
		Use: "up", GroupID: "cluster", Args: cobra.NoArgs,
		Short: "Start a cluster in the background",
		Long: `Start a cluster in the background and return when its node is Ready and its DNS answers.

A cluster that exists is resumed with its objects, and its containers that still run are adopted.
Several clusters run side by side under names of their own.

Settings of --config ('yare config --help' says what there is) stay with the cluster once it is up with them: the next start
has them too, until another file is given. /dev/null has none. A cluster that does not start with them keeps those that it had.`,
		Example: `  yare up
  yare up --config /etc/yare.yaml
  yare up --name test --ephemeral          # a second one, without waiting for the disk
  yare up --join https://192.168.1.10:6443 --token-file FILE    # a further server of a cluster: 'yare server-token' there says how`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := requireRoot(); err != nil {
				return err
			}
			if c.Flags().Changed("ephemeral") {
				w.Ephemeral = &ephemeral
			}
			if err := errors.Join(absolute(&w.DataDir), absolute(&w.Kubeconfig)); err != nil {
				return err
			}
			w.UsualKubeconfig = defaultKubeconfig()
			var s *settings
			if file != "" {
				var err error
				if s, err = readSettings(file, ""); err != nil {
					return err
				}
				if w, err = s.beside(w, c.Flags().Changed("name")); err != nil {
					return err
				}
			}
			if err := j.check(); err != nil {
				return err
			}
			if j.server != "" {
				return j.up(c.Context(), w, s, newProgress(c.OutOrStdout()))
			}
			return up(c.Context(), w, s, newProgress(c.OutOrStdout()))
		},
	}
	f := c.Flags()
	f.StringVar(&w.Name, "name", cluster.DefaultName, "name of the cluster")
	f.StringVar(&w.DataDir, "data-dir", "", "where to keep it (default /var/lib/yare/NAME)")
	f.StringVar(&w.Kubeconfig, "kubeconfig", "", "file to merge the context into (default $KUBECONFIG or ~/.kube/config)")
	f.StringVar(&file, "config", "", "YAML file with the settings (default: those of the cluster's last start)")
	f.BoolVar(&ephemeral, "ephemeral", false, "do not wait for the disk; a power cut may lose the cluster")
	f.IntVar(&w.APIPort, "api-port", 0, "port of the API (default 6443 or the next free one)")
	j.add(c)
	return c
}

// absolute makes a path independent of the folder that the command is given in.
func absolute(path *string) (err error) {
	if *path != "" {
		*path, err = filepath.Abs(*path)
	}
	return err
}

// up starts the cluster with the settings, or where they are nil with those of its last start.
func up(ctx context.Context, w cluster.Wish, s *settings, p *progress) error {
	begin := time.Now()
	r, created, done, err := cluster.Host{}.Starting(ctx, w)
	if err != nil {
		return err
	}
	defer done()
	pid, running, err := serving(ctx, r)
	if err != nil {
		return err
	}
	if running {
		if s != nil && !r.HasSettings(s.text) {
			return fmt.Errorf(`cluster %q runs with other settings than %s has; settings are taken at a start.
  End its server ('kill %d', its containers live on) or all that runs in it ('yare down --keep-data%s'), then repeat this command`,
				r.Name, s.file, pid, nameFlag(r.Name))
		}
		p.done("cluster %q already runs (process %d)", r.Name, pid)
		p.hint(r)
		return nil
	}
	if s != nil {
		if err := s.share(r); err != nil { // the server would say the same, of a file of no name
			return err
		}
	}
	_, err = os.Stat(joinFile(r))
	joins := err == nil
	if err = start(ctx, r, s, p); err != nil {
		if _, e := (cluster.Host{}).Find(r.Name); created || errors.Is(e, cluster.ErrUnknown) {
			// Nothing half done: a cluster that never came up, or was removed meanwhile, is removed again, its log kept
			// for the person.
			err = keepLog(r, err)
			err = errors.Join(err, cluster.Host{}.Remove(context.WithoutCancel(ctx), r, false, func(string) {}))
		} else if s != nil && !r.HasSettings(s.text) {
			err = fmt.Errorf("%w\n  Cluster %q keeps the settings of its last start: 'yare up%s' starts it with them", err, r.Name, nameFlag(r.Name))
		}
		return err
	}
	verb := "resumed"
	if joins {
		verb = "has one more server, this one,"
	} else if created {
		verb = "is up"
	}
	p.done("cluster %q %s in %.2f s: https://127.0.0.1:%d", r.Name, verb, time.Since(begin).Seconds(), r.APIPort)
	p.hint(r)
	return nil
}

// answerLimit is how long a server that is there may not answer: it may be starting.
const answerLimit = 30 * time.Second

// serving returns the cluster's server that answers. One that does not is waited for: it answers, or ends, as one does that was just killed and
// holds its lock until the kernel has taken it apart.
func serving(ctx context.Context, r *cluster.Record) (pid int, running bool, err error) {
	for end := time.Now().Add(answerLimit); ; {
		if pid, running = r.Server(); !running {
			return 0, false, nil
		}
		_, err := health(ctx, r)
		if err == nil {
			return pid, true, nil
		}
		if time.Now().After(end) {
			return 0, false, fmt.Errorf("the server of cluster %q, process %d, does not answer: %w\n  %s", r.Name, pid, err, silent(r, pid))
		}
		if err := run.Pause(ctx, 20*time.Millisecond); err != nil {
			return 0, false, err
		}
	}
}

// silent says what to do about a server that does not answer.
func silent(r *cluster.Record, pid int) string {
	if etcd.HasPeers(etcdDir(r)) {
		return fmt.Sprintf("It is one of several, and waits for a majority of them: start the others. Where they are up, see %s", logFile(r))
	}
	return fmt.Sprintf("End it ('kill -9 %d', its containers live on), then repeat this command", pid)
}

// start runs the server in a session of its own, with the settings or else those that the cluster keeps, and follows its progress until
// it is ready.
func start(ctx context.Context, r *cluster.Record, s *settings, p *progress) error {
	if err := os.MkdirAll(r.DataDir, 0o711); err != nil {
		return err
	}
	log, err := os.OpenFile(logFile(r), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	hear, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer hear.Close()
	cmd := exec.Command("/proc/self/exe", "server", "--existing", "--name", r.Name)
	if s != nil {
		// What was read and checked, whatever becomes of the file. The server keeps it when it is ready.
		text, err := inMemory(s.text)
		if err != nil {
			return err
		}
		defer text.Close()
		cmd.Stdin, cmd.Args = text, append(cmd.Args, "--config", "/dev/stdin")
	}
	cmd.Args[0] = os.Args[0]
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.ExtraFiles = []*os.File{tell}
	cmd.Env = append(os.Environ(), notifyFD+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		tell.Close()
		return err
	}
	tell.Close()
	// Who gives up waits for the server's end, which is the end of what it has to say.
	stop := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		time.AfterFunc(cluster.StopGrace, func() { _ = cmd.Process.Kill() })
	})
	defer stop()
	lines := bufio.NewScanner(hear)
	for lines.Scan() {
		if lines.Text() == "ready" {
			return cmd.Process.Release()
		}
		p.step(lines.Text())
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("the server ended (%v): %s", err, lastLines(logFile(r), from))
}

// inMemory returns a file of no folder with the text.
func inMemory(text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("settings", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "settings")
	if _, err := f.Write(text); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func logFile(r *cluster.Record) string { return filepath.Join(r.DataDir, "server.log") }

// keepLog moves the log of a server that never came up to where it outlives the cluster's folders.
func keepLog(r *cluster.Record, err error) error {
	kept := filepath.Join(os.TempDir(), "yare-"+r.Name+".log")
	in, e := os.ReadFile(logFile(r))
	if e != nil || os.WriteFile(kept, in, 0o600) != nil {
		return err
	}
	return fmt.Errorf("%w\n  its log: %s", err, kept)
}

// lastLines returns what the server's log says of its end: the error line if there is one.
func lastLines(file string, from int64) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err.Error()
	}
	var last string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "yare: "); ok {
			return text
		}
		last = lines.Text()
	}
	return last
}

func defaultKubeconfig() string {
	if k := os.Getenv("KUBECONFIG"); k != "" {
		if k, err := filepath.Abs(filepath.SplitList(k)[0]); err == nil {
			return k
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	return filepath.Join(home, ".kube", "config")
}
