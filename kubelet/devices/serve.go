package devices

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/validation"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/yare-dev/yare/kubelet/registrar"
	"github.com/yare-dev/yare/linux/socket"
)

const kubeletSocket = "kubelet.sock"

// Run serves plugins, and those who ask which pods have what, until ctx ends. It is ready when both sockets are listened to.
func (s *Set) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	defer s.close()
	defer cancel() // of the plugins too
	if err := clear(s.Dir()); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	var servers []*grpc.Server
	stop := func() {
		for _, server := range servers {
			server.Stop()
		}
	}
	defer stop()
	failed := make(chan error, 2)
	for path, register := range map[string]func(*grpc.Server){
		filepath.Join(s.Dir(), kubeletSocket): func(g *grpc.Server) { pluginapi.RegisterRegistrationServer(g, registration{set: s}) },
		filepath.Join(s.config.Root, "pod-resources", kubeletSocket): func(g *grpc.Server) {
			podresourcesapi.RegisterPodResourcesListerServer(g, lister{set: s})
		},
	} {
		l, err := listen(ctx, path)
		if err != nil {
			return err
		}
		server := grpc.NewServer()
		register(server)
		servers = append(servers, server)
		wg.Go(func() { failed <- server.Serve(l) })
	}
	ready()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("serve device plugins: %w", err)
	}
}

// clear removes the sockets of earlier kubelets and plugins: plugins watch for that, and register again.
func clear(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make folder of device plugins: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for sockets of device plugins: %w", err)
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSocket == 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove old socket of a device plugin: %w", err)
		}
	}
	return nil
}

func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make folder of %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	return socket.Listen(ctx, path)
}

// registration is the service by which plugins tell of themselves.
type registration struct {
	pluginapi.UnimplementedRegistrationServer
	set *Set
}

// Register takes note of a plugin, and connects to it afterwards: it may serve only when it is told that it is registered.
func (r registration) Register(_ context.Context, q *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	s := r.set
	if err := checkRegistration(q); err != nil {
		s.log.Warn("device plugin is refused", "resource", q.ResourceName, "endpoint", q.Endpoint, "err", err)
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx := s.ctx
	if ctx.Err() != nil {
		return nil, status.Error(codes.Unavailable, "the kubelet ends")
	}
	s.wg.Go(func() {
		err := s.follow(ctx, q.ResourceName, filepath.Join(s.Dir(), q.Endpoint), q.Options, false, func() {})
		if ctx.Err() == nil {
			s.log.Info("device plugin has gone", "resource", q.ResourceName, "endpoint", q.Endpoint, "err", err)
		}
	})
	return &pluginapi.Empty{}, nil
}

func checkRegistration(q *pluginapi.RegisterRequest) error {
	if !slices.Contains(pluginapi.SupportedVersions[:], q.Version) {
		return fmt.Errorf("requested API version %q is not supported by kubelet. Supported version is %q", q.Version, pluginapi.SupportedVersions)
	}
	if err := checkName(q.ResourceName); err != nil {
		return err
	}
	if e := q.Endpoint; e == "" || e == "." || e == ".." || e == kubeletSocket || strings.ContainsAny(e, "/\x00") {
		return fmt.Errorf("endpoint %.100q must be the name of the plugin's socket in the folder of kubelet.sock", e)
	}
	return nil
}

// checkName wants the name of an extended resource.
func checkName(name string) error {
	why := ""
	switch problems := validation.IsQualifiedName("requests." + name); {
	case !strings.Contains(name, "/"):
		why = "it needs a vendor's domain, as in vendor.example/device"
	case strings.Contains(name, "kubernetes.io/"):
		why = "names with kubernetes.io/ are Kubernetes' own"
	case strings.HasPrefix(name, "requests."):
		why = `names that begin with "requests." are quotas'`
	case len(problems) > 0:
		why = strings.Join(problems, "; ")
	default:
		return nil
	}
	return fmt.Errorf("the ResourceName %.300q is invalid: %s", name, why)
}

// Serve implements registrar.Handler.
func (s *Set) Serve(ctx context.Context, r registrar.Registration, ready func()) error {
	if err := checkName(r.Name); err != nil {
		return err
	}
	if !slices.ContainsFunc(r.Versions, func(v string) bool { return slices.Contains(pluginapi.SupportedVersions[:], v) }) {
		return fmt.Errorf("versions %q: the kubelet supports %q", r.Versions, pluginapi.SupportedVersions)
	}
	err := s.follow(ctx, r.Name, r.Socket, nil, true, ready)
	if errors.Is(err, errReplaced) { // else the two would take the resource from each other again and again
		s.log.Info("device plugin is replaced", "resource", r.Name, "socket", r.Socket)
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}
