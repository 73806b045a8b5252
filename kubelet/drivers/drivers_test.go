package drivers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/csi/csitest"
	"github.com/yare-dev/yare/kubelet/kubelettest"
	"github.com/yare-dev/yare/kubelet/registrar"
)

// bed is a node with an API.
type bed struct {
	t       *testing.T
	api     *kubelettest.API
	set     *Set
	changed chan struct{}
}

func newBed(t *testing.T) *bed {
	n := api.NodeKind.New().(*corev1.Node)
	n.Name, n.UID, n.Labels = "n1", "node-uid", map[string]string{"zone": "z1"}
	b := &bed{t: t, api: kubelettest.NewAPI(n), changed: make(chan struct{}, 10)}
	b.start()
	return b
}

// start makes the Set, as after a restart.
func (b *bed) start() {
	b.set = New("n1", b.node, b.api, slog.New(slog.NewTextHandler(b.t.Output(), nil)), func() { b.changed <- struct{}{} })
}

func (b *bed) node() *corev1.Node {
	n, err := client.Get[*corev1.Node](b.t.Context(), b.api, api.Key{Name: "n1"})
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// written is what the API has of the drivers.
func (b *bed) written() string {
	b.t.Helper()
	c, err := client.Get[*storagev1.CSINode](b.t.Context(), b.api, api.Key{Name: "n1"})
	if err != nil {
		return err.Error()
	}
	if len(c.OwnerReferences) != 1 || c.OwnerReferences[0].UID != b.node().UID {
		b.t.Error("owner of the CSINode:", c.OwnerReferences)
	}
	text, _ := json.Marshal(c.Spec.Drivers)
	return string(text) + " " + b.node().Annotations[idAnnotation]
}

// serve registers a driver, and returns how to end that.
func (b *bed) serve(r registrar.Registration) (end func(why error), err error) {
	ctx, cancel := context.WithCancelCause(b.t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- b.set.Serve(ctx, r, func() { close(ready) }) }()
	end = func(why error) {
		cancel(why)
		<-done
	}
	select {
	case <-ready:
		return end, nil
	case err := <-done:
		cancel(nil)
		return nil, err
	}
}

func serveDriver(t *testing.T, d *csitest.Driver) registrar.Registration {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	stop, err := d.Serve(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return registrar.Registration{Name: d.Name, Socket: socket, Versions: []string{"1.0.0"}}
}

func TestLife(t *testing.T) {
	b := newBed(t)
	d := csitest.New("disk.example.com", t.TempDir())
	d.Node = &spec.NodeGetInfoResponse{NodeId: "i-7", MaxVolumesPerNode: 1 << 40, AccessibleTopology: &spec.Topology{Segments: map[string]string{"zone": "z1", "rack": "r2"}}}
	r := serveDriver(t, d)
	end, err := b.serve(r)
	if err != nil {
		t.Fatal(err)
	}
	<-b.changed
	const both = `[{"name":"disk.example.com","nodeID":"i-7","topologyKeys":["rack","zone"],"allocatable":{"count":2147483647}}] {"disk.example.com":"i-7"}`
	if got := b.written(); got != both {
		t.Error(got)
	}
	if l := b.node().Labels; l["rack"] != "r2" {
		t.Error(l)
	}
	if _, err := b.set.Driver("disk.example.com"); err != nil {
		t.Error(err)
	}
	if _, err := b.set.Driver("other"); err == nil || !strings.Contains(err.Error(), "driver name other not found in the list of registered CSI drivers") {
		t.Error(err)
	}
	// A restart of the kubelet, or another socket in the place of this one, leaves all as it is and writes nothing.
	b.api.Writes()
	for _, why := range []error{context.Canceled, registrar.ErrRenewed} {
		end(why)
		b.start()
		if end, err = b.serve(r); err != nil {
			t.Fatal(err)
		}
		<-b.changed
	}
	if w := b.api.Writes(); len(w) > 0 || b.written() != both {
		t.Error(w, b.written())
	}
	end(registrar.ErrGone)
	<-b.changed
	if got := b.written(); got != "[] " {
		t.Error(got)
	}
	if _, err := b.set.Driver("disk.example.com"); err == nil {
		t.Error("a driver without a socket is used")
	}
}

func TestRefused(t *testing.T) {
	b := newBed(t)
	d := csitest.New("d", t.TempDir())
	r := serveDriver(t, d)
	for want, change := range map[string]func(r *registrar.Registration){
		"supports versions 0.3, 2.0.0 of CSI, and this node 1": func(r *registrar.Registration) { r.Versions = []string{"0.3", "2.0.0"} },
		`name "a/b" is not that of a CSI driver`:               func(r *registrar.Registration) { r.Name = "a/b" },
		"is not an absolute path":                              func(r *registrar.Registration) { r.Socket = "s" },
		"driver d: NodeGetInfo: Unavailable":                   func(r *registrar.Registration) { r.Socket = filepath.Join(t.TempDir(), "none") },
		"the driver has no name for this node":                 func(*registrar.Registration) { d.Node = &spec.NodeGetInfoResponse{} },
		"has 101 segments": func(*registrar.Registration) {
			many := map[string]string{}
			for i := range 101 {
				many[fmt.Sprint("k", i)] = "v"
			}
			d.Node = &spec.NodeGetInfoResponse{NodeId: "n", AccessibleTopology: &spec.Topology{Segments: many}}
		},
		"says that this node is at zone=z2, and its label says z1": func(*registrar.Registration) {
			d.Node = &spec.NodeGetInfoResponse{NodeId: "n", AccessibleTopology: &spec.Topology{Segments: map[string]string{"zone": "z2"}}}
		},
	} {
		wrong := r
		change(&wrong)
		if _, err := b.serve(wrong); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if _, err := b.set.Driver("d"); err == nil {
			t.Errorf("%s: it is used", want)
		}
	}
}

// A second driver of a name waits until the first is gone, and takes nothing from it.
func TestSameName(t *testing.T) {
	b := newBed(t)
	first, second := csitest.New("d", t.TempDir()), csitest.New("d", t.TempDir())
	second.Node = &spec.NodeGetInfoResponse{NodeId: "second"}
	end, err := b.serve(serveDriver(t, first))
	if err != nil {
		t.Fatal(err)
	}
	<-b.changed
	before := b.written()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	asked := make(chan struct{})
	second.Hook = func(call, _ string, _ bool) error {
		if call == "Info" {
			close(asked)
		}
		return nil
	}
	go func() { done <- b.set.Serve(ctx, serveDriver(t, second), func() { close(ready) }) }()
	<-asked
	if d, err := b.set.Driver("d"); err != nil || d.(*driver).info.NodeId != "node-of-d" || b.written() != before {
		t.Error("it was taken over:", err, b.written())
	}
	end(registrar.ErrGone)
	<-ready
	if d, err := b.set.Driver("d"); err != nil || d.(*driver).info.NodeId != "second" || !strings.Contains(b.written(), "second") {
		t.Error("it was not taken up:", err, b.written())
	}
	cancel()
	<-done
}

// A driver whose labels the API refuses fails alone.
func TestRefusedAlone(t *testing.T) {
	b := newBed(t)
	bad, good := csitest.New("bad", t.TempDir()), csitest.New("good", t.TempDir())
	bad.Node = &spec.NodeGetInfoResponse{NodeId: "n", AccessibleTopology: &spec.Topology{Segments: map[string]string{"zone": "elsewhere"}}}
	if _, err := b.serve(serveDriver(t, bad)); err == nil {
		t.Fatal("it was registered")
	}
	end, err := b.serve(serveDriver(t, good))
	if err != nil {
		t.Fatal(err)
	}
	if w := b.written(); strings.Contains(w, "bad") || !strings.Contains(w, "good") {
		t.Error(w)
	}
	end(registrar.ErrGone)
}

// How many volumes a driver can attach is asked again as often as its CSIDriver says, also where it says so later.
func TestPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		d := csitest.New("d", t.TempDir())
		d.Hook = func(string, string, bool) error { // each answer is another
			d.Node = &spec.NodeGetInfoResponse{NodeId: d.Node.NodeId, MaxVolumesPerNode: d.Node.MaxVolumesPerNode + 1}
			return nil
		}
		one := &driver{Client: d.Client()}
		if err := b.set.ask(t.Context(), one); err != nil {
			t.Fatal(err)
		}
		b.set.drivers["d"] = one
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { b.set.follow(ctx, "d", one) })
		for _, c := range []struct {
			seconds *int64
			wait    time.Duration
			asked   bool
		}{{nil, 10 * time.Minute, false}, {new(int64(600)), 11 * time.Minute, true}, {new(int64(600)), 9 * time.Minute, false}, {new(int64(10)), 2 * time.Minute, true},
			{nil, 2 * time.Minute, true}, {nil, time.Hour, false}} {
			o := api.CSIDriverKind.New().(*storagev1.CSIDriver)
			o.Name, o.Spec.NodeAllocatableUpdatePeriodSeconds = "d", c.seconds
			b.api.Put(o)
			before := b.written()
			time.Sleep(c.wait)
			synctest.Wait()
			if got := b.written(); (got != before) != c.asked {
				t.Errorf("%+v: %s, before %s", c, got, before)
			}
		}
		cancel()
		wg.Wait()
	})
}

// away is an API that fails as often as it says.
type away struct {
	client.Client
	left int
	err  error
}

func (a *away) Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	if a.left--; a.left >= 0 {
		return nil, a.err
	}
	return a.Client.Get(ctx, k, key)
}

// A driver waits for the Node and the API, and hears of its own faults alone.
func TestPatience(t *testing.T) {
	refused := apierrors.NewForbidden(corev1.Resource("nodes"), "n1", errors.New("that label is not yours"))
	for want, err := range map[string]error{"": apierrors.NewServerTimeout(corev1.Resource("nodes"), "get", 1), refused.Error(): refused} {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t)
			n := b.node()
			late := time.Now().Add(time.Minute)
			b.set.object = func() *corev1.Node {
				if time.Now().Before(late) {
					return nil
				}
				return n
			}
			b.set.client = &away{b.api, 3, err}
			d := &driver{Client: csitest.New("d", t.TempDir()).Client()}
			if err := b.set.ask(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			err := b.set.enter(t.Context(), "d", d)
			if got := fmt.Sprint(err); want == "" && err != nil || want != "" && got != want {
				t.Errorf("%s, want %q", got, want)
			}
			if in := strings.Contains(b.written(), `"name":"d"`); in != (want == "") {
				t.Error(b.written())
			}
		})
	}
}

// A Node that is made anew has a CSINode again.
func TestNodeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { b.set.Run(ctx, func() {}) })
		synctest.Wait()
		for range 2 {
			if got := b.written(); got != "[] " {
				t.Error(got)
			}
			n := b.node().DeepCopy()
			n.UID = "another"
			b.api.Put(n)
			b.set.NodeChanged()
			synctest.Wait()
		}
		cancel()
		wg.Wait()
	})
}

// busy writes to the Node in the moment before the Set does, some times.
type busy struct {
	*kubelettest.API
	left int
}

func (b *busy) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	if n, ok := o.(*corev1.Node); ok && b.left > 0 {
		b.left--
		other, err := client.Get[*corev1.Node](ctx, b.API, api.KeyOf(n))
		if err != nil {
			return nil, err
		}
		other = other.DeepCopy()
		other.Labels["n"] = fmt.Sprint(b.left)
		if _, err := b.API.Update(ctx, other, ""); err != nil {
			return nil, err
		}
	}
	return b.API.Update(ctx, o, sub)
}

// Others that write to the Node, as at its start, do not keep a driver from being registered at once.
func TestNodeIsBusy(t *testing.T) {
	b := newBed(t)
	b.set.client = &busy{b.api, 3}
	d := csitest.New("disk.example.com", t.TempDir())
	d.Node = &spec.NodeGetInfoResponse{NodeId: "i-7"}
	end, err := b.serve(serveDriver(t, d))
	if err != nil {
		t.Fatal(err)
	}
	defer end(nil)
	if n := b.node(); n.Labels["n"] != "0" || n.Annotations[idAnnotation] == "" {
		t.Errorf("node %+v", n.ObjectMeta)
	}
}

// A CSINode is made without drivers too, and is always this Node's.
func TestKeep(t *testing.T) {
	b := newBed(t)
	if err := b.set.keep(t.Context()); err != nil || b.written() != "[] " {
		t.Error(err, b.written())
	}
	n := b.node().DeepCopy()
	n.UID = "another"
	b.api.Put(n)
	if err := b.set.keep(t.Context()); err != nil || b.written() != "[] " {
		t.Error(err, b.written())
	}
	b.set.object = func() *corev1.Node { return nil }
	if err := b.set.keep(t.Context()); !errors.Is(err, errNoNode) {
		t.Error(err)
	}
}
