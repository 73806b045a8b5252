// Package registrar finds the programs that offer themselves to the kubelet by a socket in a folder (<root>/plugins_registry), asks each
// what it is, and hands it to who serves its type. It replaces upstream's plugin manager and watcher.
//
//	socket appears ─> GetInfo ─> Handler.Serve ──ready──> NotifyRegistrationStatus(true) ─> ... until the socket goes
//	                     │            └──fails──> NotifyRegistrationStatus(false), and again after a while
//	                     └──type that nobody serves──> NotifyRegistrationStatus(false), for good
//
// A socket is told from one that was made later under the same name by its inode, which is held open while it is served: no other gets its number.
// Names that begin with a dot are left alone, and so are subfolders, which upstream follows: no program that is known offers itself there.
// The folder is watched by events; nothing is polled.
package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/yare-dev/yare/kubelet/fsevents"
	"github.com/yare-dev/yare/linux/socket"
	"github.com/yare-dev/yare/run"
)

// Why the context of Handler.Serve ends, beside the end of the kubelet.
var (
	// ErrGone says that the socket was removed.
	ErrGone = errors.New("the socket is gone")
	// ErrRenewed says that there is another socket under its name, which is served next.
	ErrRenewed = errors.New("the socket was made anew")
)

// Pauses after failures.
const (
	firstPause = 20 * time.Millisecond  // a socket is there before it is listened to
	quietPause = 500 * time.Millisecond // up to which nothing is said of them
	lastPause  = 30 * time.Second
	callLimit  = 10 * time.Second
)

// Registration is what a program says of itself.
type Registration struct {
	Name     string
	Socket   string   // where it serves
	Versions []string // of the type's API
}

// Handler serves the programs of one type.
type Handler interface {
	// Serve takes a program up, calls ready, and returns when ctx ends; context.Cause says whether by ErrGone or ErrRenewed. An error before
	// ready is told to the program, and Serve is called again later.
	Serve(ctx context.Context, r Registration, ready func()) error
}

// Registrar watches one folder.
type Registrar struct {
	dir      string
	handlers map[string]Handler
	log      *slog.Logger

	// Of the loop of Run alone.
	served map[string]*serving // by path
	wg     sync.WaitGroup
}

// serving is one socket.
type serving struct {
	node   *inode
	cancel context.CancelCauseFunc
	ended  bool          // it is told to end; what comes under its name waits for that
	done   chan struct{} // it has ended
}

// inode tells sockets of one name apart, also when one is made at the moment that the other goes.
type inode struct {
	file *os.File // by O_PATH: it connects to nobody
	info fs.FileInfo
}

// New returns a Registrar of the sockets in dir. Handlers are by type (registerapi.CSIPlugin).
func New(dir string, handlers map[string]Handler, log *slog.Logger) *Registrar {
	return &Registrar{dir: dir, handlers: handlers, log: log, served: map[string]*serving{}}
}

// Run serves until ctx ends. It is ready when the folder is watched. A folder that is removed is made again.
func (r *Registrar) Run(ctx context.Context, ready func()) error {
	defer func() {
		r.wg.Wait()
		for _, s := range r.served {
			s.end(context.Cause(ctx))
		}
	}()
	for ctx.Err() == nil {
		if err := r.watch(ctx, ready); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// watch serves until ctx ends, or the folder cannot be read.
func (r *Registrar) watch(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(r.dir, 0o750); err != nil {
		return fmt.Errorf("make folder of sockets: %w", err)
	}
	watch, err := fsevents.Watch(r.dir) // before the first look: nothing in between is missed
	if err != nil {
		return err
	}
	defer watch.Close()
	ready()
	for {
		if err := r.look(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-watch.C:
		}
	}
}

// look compares the folder with what is served.
func (r *Registrar) look(ctx context.Context) error {
	found, err := sockets(r.dir)
	if err != nil {
		return err
	}
	for path, s := range r.served {
		switch node := found[path]; {
		case s.ended:
		case node == nil:
			s.end(ErrGone)
		case !os.SameFile(node.info, s.node.info):
			s.end(ErrRenewed)
		}
		select {
		case <-s.done:
			if s.ended {
				delete(r.served, path)
			}
		default:
		}
	}
	for _, path := range slices.Sorted(maps.Keys(found)) {
		before, node := r.served[path], found[path]
		if before != nil && !before.ended {
			node.file.Close()
			continue
		}
		ctx, cancel := context.WithCancelCause(ctx)
		s := &serving{node: node, cancel: cancel, done: make(chan struct{})}
		r.served[path] = s
		r.wg.Go(func() {
			defer close(s.done)
			defer cancel(nil)
			if before != nil {
				<-before.done
			}
			r.serve(ctx, path)
		})
	}
	return nil
}

// end tells who serves the socket to end, which may take a while: others are not kept waiting by that.
func (s *serving) end(why error) {
	s.cancel(why)
	s.node.file.Close()
	s.ended = true
}

// sockets returns those in dir, by path. The caller closes their files.
func sockets(dir string) (map[string]*inode, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for sockets: %w", err)
	}
	found := map[string]*inode{}
	for _, e := range entries {
		if e.Type()&fs.ModeSocket == 0 || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		file, err := os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // gone already
		}
		info, err := file.Stat()
		if err != nil {
			file.Close()
			return nil, fmt.Errorf("look for sockets: %w", err)
		}
		found[path] = &inode{file, info}
	}
	return found, nil
}

// serve offers the program to its handler until it is taken up, and then until ctx ends.
func (r *Registrar) serve(ctx context.Context, path string) {
	log := r.log.With("socket", path)
	for wait := firstPause; ; wait = min(2*wait, lastPause) {
		again, err := r.offer(ctx, path, log)
		if ctx.Err() != nil || !again {
			return
		}
		if wait > quietPause {
			log.Warn("program is not registered yet", "err", err)
		}
		if run.Pause(ctx, wait) != nil {
			return
		}
	}
}

// offer goes once through the protocol. It returns when ctx ends, or with an error, and whether it makes sense to try again.
func (r *Registrar) offer(ctx context.Context, path string, log *slog.Logger) (again bool, err error) {
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithContextDialer(socket.To(path)),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return false, err
	}
	defer conn.Close()
	client := registerapi.NewRegistrationClient(conn)
	limited, cancel := context.WithTimeout(ctx, callLimit)
	info, err := client.GetInfo(limited, &registerapi.InfoRequest{})
	cancel()
	if err != nil {
		return true, fmt.Errorf("GetInfo: %w", err)
	}
	tell := func(refused error) {
		status := &registerapi.RegistrationStatus{PluginRegistered: refused == nil}
		if refused != nil {
			status.Error = refused.Error()
		}
		limited, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		if _, err := client.NotifyRegistrationStatus(limited, status); err != nil && ctx.Err() == nil {
			log.Warn("program cannot be told whether it is registered", "err", err)
		}
	}
	handler := r.handlers[info.Type]
	if handler == nil {
		err := fmt.Errorf("type %q is not served by this node, which serves %s", info.Type, strings.Join(slices.Sorted(maps.Keys(r.handlers)), ", "))
		log.Warn("program is refused", "err", err)
		tell(err)
		return false, err
	}
	registered := false
	err = handler.Serve(ctx, Registration{Name: info.Name, Socket: cmp.Or(info.Endpoint, path), Versions: info.SupportedVersions}, func() {
		registered = true
		log.Info("program is registered", "type", info.Type, "name", info.Name)
		tell(nil)
	})
	if err != nil && !registered && ctx.Err() == nil {
		tell(err)
	}
	return true, err
}
