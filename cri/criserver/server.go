package criserver

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/image"
	"github.com/yare-dev/yare/linux/apparmor"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/seccomp"
)

// Config says where a Server keeps its things and listens.
type Config struct {
	// Dir holds the records, on disk; RunDir the shims' sockets: keep it short
	// (at most 60 bytes) and on a tmpfs. Both are made when missing.
	Dir, RunDir string
	// Socket is the path of the unix socket to serve; empty serves none.
	Socket string
	// Streaming is the address for exec, attach and port-forward sessions;
	// empty means 127.0.0.1 with any port. Whoever knows a session's URL, which
	// holds a secret token, can use it, once.
	Streaming string
	// CgroupParent is for sandboxes that name none; empty means "/yare".
	CgroupParent string
	// Rlimits apply to every container.
	Rlimits []specs.POSIXRlimit
	// Handlers are other OCI runtimes by the name that a RuntimeClass has for them, a DNS label. [CheckHandlers] says what is
	// wrong with them.
	Handlers map[string]Handler
	// CDI are the folders of CDI files, which say what a device means for a container; empty means /etc/cdi and /var/run/cdi.
	CDI []string
	// AppArmorProfile is the name of the default AppArmor profile, which is loaded where the host has AppArmor; empty means "yare".
	AppArmorProfile string
	// SELinux gives pods the contexts that the host's policy has for containers. It is an error where the host has no SELinux, or no policy for containers.
	SELinux bool
	// Version is told as the runtime's own, in the form of semver.org, which upstream's kubelet insists on; empty means 0.0.0.
	Version string
}

// Deps are what a Server stands on.
type Deps struct {
	Images  *image.Store
	Network cni.Network
	Init    *oci.Init
	Log     *slog.Logger
}

// Server implements cri.Server and run.Component.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg     Config
	images  *image.Store
	network cni.Network
	init    *oci.Init
	facts   hostFacts
	// handlers does not have the built-in one. It is made before anything is served.
	handlers map[string]*handler
	profiles *profiles
	labels   *labels
	log      *slog.Logger
	events   *broadcast
	streams  *streams

	// lasting does not end with Run: what must be cleaned up is.
	lasting context.Context
	// staying ends when we leave.
	staying context.Context
	part    context.CancelFunc
	// background holds what runs for longer than a call.
	background sync.WaitGroup
	// pulled has something when there are images to settle.
	pulled chan struct{}

	mu         sync.Mutex
	serving    bool
	leaving    bool
	sandboxes  map[string]*sandbox
	containers map[string]*container
	names      map[string]string // reserved names -> ID

	layers layers
}

// maxRunDir leaves room for a shim's directory and socket in a socket address.
const maxRunDir = 60

// New makes a Server that serves once Run is called.
func New(cfg Config, deps Deps) (*Server, error) {
	if !filepath.IsAbs(cfg.Dir) || !filepath.IsAbs(cfg.RunDir) || len(cfg.RunDir) > maxRunDir {
		return nil, fmt.Errorf("configure CRI server: dir %q and runDir %q must be absolute, the latter of at most %d bytes", cfg.Dir, cfg.RunDir, maxRunDir)
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "/yare"
	}
	cfg.Streaming = cmp.Or(cfg.Streaming, "127.0.0.1:0")
	var errs []error
	CheckHandlers(cfg.Handlers, func(field, format string, args ...any) { errs = append(errs, fmt.Errorf(field+": "+format, args...)) })
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("configure CRI server: handlers: %w", err)
	}
	facts, err := gatherFacts()
	if err != nil {
		return nil, fmt.Errorf("configure CRI server: %w", err)
	}
	facts.Rlimits, facts.Seccomp = cfg.Rlimits, seccomp.Default
	cfg.AppArmorProfile = cmp.Or(cfg.AppArmorProfile, "yare")
	s := &Server{
		cfg: cfg, images: deps.Images, network: deps.Network, init: deps.Init, log: deps.Log,
		facts:     facts,
		events:    newBroadcast(),
		pulled:    make(chan struct{}, 1),
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{}, names: map[string]string{},
	}
	if cfg.SELinux {
		if s.labels, err = openLabels(); err != nil {
			return nil, fmt.Errorf("configure CRI server: SELinux: %w", err)
		}
	}
	if apparmor.Enabled() {
		s.profiles = newProfiles(cfg.AppArmorProfile, deps.Log)
	}
	return s, nil
}

// Name is the component's.
func (s *Server) Name() string { return "criserver" }

// Run adopts what an earlier process left, then serves until ctx ends.
// Containers go on running after it.
func (s *Server) Run(ctx context.Context, ready func()) error {
	s.lasting = context.WithoutCancel(ctx)
	s.staying, s.part = context.WithCancel(s.lasting)
	defer s.background.Wait()
	defer s.leave()
	for _, d := range []string{s.sandboxDir(""), s.containerDir("")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return fmt.Errorf("start CRI server: %w", err)
		}
	}
	if err := os.MkdirAll(s.cfg.RunDir, 0o700); err != nil {
		return fmt.Errorf("start CRI server: %w", err)
	}
	s.handlers = openHandlers(ctx, s.cfg.Handlers, s.facts, s.log)
	// It goes on when ctx ends meanwhile: a shim that was not asked to the end must not be taken for a dead one.
	if err := s.adopt(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("adopt sandboxes: %w", err)
	}
	failed := make(chan error, 2)
	stopStreams, err := s.serveStreams(failed)
	if err != nil {
		return err
	}
	defer stopStreams()
	// It ends after the socket, however Run ends: what was pulled until then is settled.
	settling, settled := context.WithCancel(s.lasting)
	defer settled()
	stopSocket, err := s.serveSocket(failed)
	if err != nil {
		return err
	}
	defer stopSocket()
	s.mu.Lock()
	s.serving = true
	s.mu.Unlock()
	ready()
	s.background.Go(func() { s.settle(settling) })
	if s.profiles != nil {
		s.background.Go(func() { s.renewProfile(ctx) })
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-failed:
		return err
	}
}

// renewProfile is done beside what the first pods wait for anyway.
func (s *Server) renewProfile(ctx context.Context) {
	if err := s.profiles.renew(ctx); err != nil && ctx.Err() == nil {
		s.profiles.warn(err)
	}
}

// leave lets go of the shims, which live on.
func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving, s.leaving = false, true
	s.part()
	s.events.close()
	for _, sb := range s.sandboxes {
		sb.leave()
	}
}

// maxMessage is what a gRPC message may have, in bytes: as much as upstream's
// kubelet takes.
const maxMessage = 16 << 20

func (s *Server) serveSocket(failed chan<- error) (stop func(), err error) {
	if s.cfg.Socket == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o755); err != nil {
		return nil, fmt.Errorf("listen for CRI: %w", err)
	}
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen for CRI: %w", err)
	}
	l, err := net.Listen("unix", s.cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("listen for CRI: %w", err)
	}
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen for CRI: %w", err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
	s.background.Go(func() {
		if err := g.Serve(l); err != nil {
			failed <- fmt.Errorf("serve CRI: %w", err)
		}
	})
	return g.Stop, nil
}

func (s *Server) sandboxDir(id string) string   { return filepath.Join(s.cfg.Dir, "sandboxes", id) }
func (s *Server) containerDir(id string) string { return filepath.Join(s.cfg.Dir, "containers", id) }

// shimDir is short: a socket's path is limited.
func (s *Server) shimDir(sandbox string) string { return filepath.Join(s.cfg.RunDir, sandbox[:20]) }

// newID is a random ID of the form that log collectors know containers by.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
