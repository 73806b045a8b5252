package registrar

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// program offers itself by a socket.
type program struct {
	registerapi.UnimplementedRegistrationServer
	info *registerapi.PluginInfo
	told chan *registerapi.RegistrationStatus
	path string
	stop func()
}

func (p *program) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return p.info, nil
}

func (p *program) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	p.told <- s
	return &registerapi.RegistrationStatusResponse{}, nil
}

func start(t *testing.T, dir, socket, kind, name string) *program {
	t.Helper()
	return startAs(t, filepath.Join(dir, socket), &registerapi.PluginInfo{Type: kind, Name: name, Endpoint: "/e", SupportedVersions: []string{"1.0.0"}})
}

func startAs(t *testing.T, path string, info *registerapi.PluginInfo) *program {
	t.Helper()
	p := &program{info: info, told: make(chan *registerapi.RegistrationStatus, 10), path: path}
	l, err := net.Listen("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	registerapi.RegisterRegistrationServer(s, p)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	p.stop = func() { s.Stop(); <-done } // which removes the socket
	t.Cleanup(p.stop)
	return p
}

// notes is a Handler that notes what it serves.
type notes struct {
	came chan Registration
	left chan error
	fail chan error
}

func newNotes() *notes {
	return &notes{make(chan Registration, 10), make(chan error, 10), make(chan error, 10)}
}

func (n *notes) Serve(ctx context.Context, r Registration, ready func()) error {
	n.came <- r
	select {
	case err := <-n.fail:
		return err
	default:
	}
	ready()
	<-ctx.Done()
	n.left <- context.Cause(ctx)
	return nil
}

// begin runs a Registrar until the returned function is called.
func begin(t *testing.T, dir string, n *notes) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	r := New(dir, map[string]Handler{registerapi.CSIPlugin: n}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx, func() {
			select {
			case <-ready:
			default:
				close(ready)
			}
		}); err != nil {
			t.Error(err)
		}
	}()
	<-ready
	end = func() { cancel(); <-done }
	t.Cleanup(end)
	return end
}

func TestLife(t *testing.T) {
	dir, n := filepath.Join(t.TempDir(), "registry"), newNotes()
	end := begin(t, dir, n)
	p := start(t, dir, "a-reg.sock", registerapi.CSIPlugin, "a")
	r := <-n.came
	if r.Name != "a" || r.Socket != "/e" || !slices.Equal(r.Versions, []string{"1.0.0"}) {
		t.Error(r)
	}
	if s := <-p.told; !s.PluginRegistered || s.Error != "" {
		t.Error(s)
	}
	p.stop()
	if err := <-n.left; !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	// It comes back, and another in its place: nothing says that it was gone in between.
	p = start(t, dir, "a-reg.sock", registerapi.CSIPlugin, "a")
	<-n.came
	<-p.told
	aside := startAs(t, filepath.Join(t.TempDir(), "s"), // without an endpoint: it serves where it offers itself
		&registerapi.PluginInfo{Type: registerapi.CSIPlugin, Name: "b", SupportedVersions: []string{"1.0.0"}})
	if err := os.Rename(aside.path, filepath.Join(dir, "a-reg.sock")); err != nil {
		t.Fatal(err)
	}
	if err := <-n.left; !errors.Is(err, ErrRenewed) {
		t.Error(err)
	}
	if r := <-n.came; r.Name != "b" || r.Socket != filepath.Join(dir, "a-reg.sock") {
		t.Error(r)
	}
	<-aside.told
	end()
	if err := <-n.left; !errors.Is(err, context.Canceled) {
		t.Error("the end of the kubelet:", err)
	}
}

// What cannot be taken up is told, and tried again; what nobody serves is refused by name, once.
func TestRefused(t *testing.T) {
	dir, n := t.TempDir(), newNotes()
	n.fail <- errors.New("not now")
	device := start(t, dir, "device.sock", registerapi.DevicePlugin, "gpu")
	p := start(t, dir, "a.sock", registerapi.CSIPlugin, "a")
	if err := os.WriteFile(filepath.Join(dir, "file.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, dir, ".hidden", registerapi.CSIPlugin, "hidden")
	begin(t, dir, n)
	if s := <-p.told; s.PluginRegistered || s.Error != "not now" {
		t.Error(s)
	}
	if s := <-p.told; !s.PluginRegistered {
		t.Error(s)
	}
	if s := <-device.told; s.PluginRegistered || !strings.Contains(s.Error, `type "DevicePlugin" is not served by this node, which serves CSIPlugin`) {
		t.Error(s)
	}
	for range 2 {
		if r := <-n.came; r.Name != "a" {
			t.Error(r)
		}
	}
}

// One program that takes its time to end holds up no other, but what comes in its place; and it is the same after a chmod.
func TestSlowEnd(t *testing.T) {
	dir, n := t.TempDir(), newNotes()
	n.left = make(chan error) // who ends waits until it is seen
	begin(t, dir, n)
	p := start(t, dir, "a.sock", registerapi.CSIPlugin, "a")
	<-p.told
	<-n.came
	if err := os.Chmod(p.path, 0o600); err != nil {
		t.Fatal(err)
	}
	p.stop()
	p = start(t, dir, "a.sock", registerapi.CSIPlugin, "a")
	other := start(t, dir, "b.sock", registerapi.CSIPlugin, "b")
	<-other.told
	if r := <-n.came; r.Name != "b" {
		t.Error(r)
	}
	if err := <-n.left; !errors.Is(err, ErrGone) && !errors.Is(err, ErrRenewed) { // both may be seen as one change
		t.Error(err)
	}
	if r := <-n.came; r.Name != "a" {
		t.Error(r)
	}
	<-p.told
	p.stop()
	<-n.left
	other.stop()
	<-n.left
}

// A socket is another than the one that was there a moment ago under its name, and the same after a chmod; and none stays open.
func TestAnother(t *testing.T) {
	dir, n := t.TempDir(), newNotes()
	end := begin(t, dir, n)
	p := start(t, dir, "a.sock", registerapi.CSIPlugin, "a")
	for range 50 { // the number of a removed file is soon used again, and the clock of files is coarse
		<-p.told
		<-n.came
		if err := os.Chmod(p.path, 0o600); err != nil {
			t.Fatal(err)
		}
		p.stop()
		p = start(t, dir, "a.sock", registerapi.CSIPlugin, "a")
		<-n.left
	}
	<-p.told
	end()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if at, _ := os.Readlink(fd); strings.HasPrefix(at, dir) {
			t.Error("left open:", at)
		}
	}
}

// A folder that somebody removes is made again.
func TestFolderRemoved(t *testing.T) {
	dir, n := filepath.Join(t.TempDir(), "registry"), newNotes()
	begin(t, dir, n)
	p := start(t, dir, "a.sock", registerapi.CSIPlugin, "a")
	<-p.told
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	<-n.left
}
