package dra

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	drapbv1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"

	"github.com/yare-dev/yare/kubelet/dra/dratest"
)

func TestPrepare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x, y := dratest.New("x.example.com"), dratest.New("y.example.com")
		defer n.come(x, "/x")()
		defer n.come(y, "/y")()
		p, q := claimer("p", "own", "shared"), claimer("q", "shared")
		n.claim("own", []string{"x.example.com"}, p)
		n.claim("shared", []string{"x.example.com", "y.example.com"}, p, q)
		if n.set.Ready(p) {
			t.Error("ready before anything was prepared")
		}
		if _, err := n.set.Devices(p, &p.Spec.Containers[0]); err == nil {
			t.Error("a container could be made without its devices")
		}
		n.prepare(p)
		n.calls(x, "prepare own,shared")
		n.calls(y, "prepare shared")
		if got, want := n.cdi(p), "example.com/x-example-com=own example.com/x-example-com=shared example.com/y-example-com=shared"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		n.prepare(p) // again
		n.prepare(q)
		n.calls(x)
		want := `[claim_name:"own" claim_namespace:"default" claim_resources:{cdi_devices:{name:"example.com/x-example-com=own"} driver_name:"x.example.com" pool_name:"pool" device_name:"d-own"}`
		if got := strings.ReplaceAll(fmt.Sprint(n.set.Resources(p, "app")), "  ", " "); !strings.HasPrefix(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
		n.release(p)
		n.calls(x, "unprepare own")
		n.calls(y)
		n.release(p)
		n.release(q)
		n.calls(x, "unprepare shared")
		n.calls(y, "unprepare shared")
		n.empty()
	})
}

// Two pods that come at once have their claim prepared once.
func TestPrepareTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x := dratest.New("x.example.com")
		x.Before = func(context.Context, string) error { time.Sleep(time.Second); return nil }
		defer n.come(x, "/x")()
		p, q := claimer("p", "c"), claimer("q", "c")
		n.claim("c", []string{"x.example.com"}, p, q)
		done := make(chan error, 2)
		for _, one := range []*corev1.Pod{p, q} {
			go func() { done <- n.set.Prepare(t.Context(), one) }()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		n.calls(x, "prepare c")
		// The last pod ends while another comes: it finds the claim unprepared, and has it prepared anew.
		n.release(p)
		go func() { done <- n.set.Release(t.Context(), q.UID) }()
		synctest.Wait()
		n.prepare(p)
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.calls(x, "unprepare c", "prepare c")
		n.release(p)
		n.empty()
	})
}

// A driver that hangs keeps a pod for as long as one call may take, however many of its drivers do, and what others have is done meanwhile.
func TestDriversAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x, y, z := dratest.New("x.example.com"), dratest.New("y.example.com"), dratest.New("z.example.com")
		hangs := func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		x.Before, y.Before = hangs, hangs
		for path, d := range map[string]*dratest.Driver{"/x": x, "/y": y, "/z": z} {
			defer n.come(d, path)()
		}
		p := claimer("p", "c")
		n.claim("c", []string{"x.example.com", "y.example.com", "z.example.com"}, p)
		for _, call := range []func() error{func() error { return n.set.Prepare(t.Context(), p) }, func() error { return n.set.Release(t.Context(), p.UID) }} {
			begin := time.Now()
			done := make(chan error, 1)
			go func() { done <- call() }()
			time.Sleep(slow)
			if got := strings.Join(n.set.Waits(p.UID), "; "); strings.Count(got, "has not answered") != 2 || !strings.Contains(got, "x.example.com") || !strings.Contains(got, "y.example.com") {
				t.Error(got)
			}
			if err := <-done; err == nil || !strings.Contains(err.Error(), "x.example.com") || !strings.Contains(err.Error(), "y.example.com") || strings.Contains(err.Error(), "z.example.com") {
				t.Error(err)
			}
			if took := time.Since(begin); took != callLimit || len(n.set.Waits(p.UID)) > 0 {
				t.Error(took, n.set.Waits(p.UID))
			}
		}
		n.calls(z, "prepare c", "unprepare c")
		for _, d := range []*dratest.Driver{x, y} {
			d.Change(func() { d.Before = nil })
		}
		n.release(p)
		n.empty()
	})
}

// What a container names of a claim is what it gets.
func TestRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x := dratest.New("x.example.com")
		x.Prepare = func(*drapb.Claim) *drapb.NodePrepareResourceResponse {
			return &drapb.NodePrepareResourceResponse{Devices: []*drapb.Device{
				{RequestNames: []string{"a"}, PoolName: "pool", DeviceName: "da", CdiDeviceIds: []string{"v/c=a", "v/c=common"}},
				{RequestNames: []string{"b/big"}, PoolName: "pool", DeviceName: "db", CdiDeviceIds: []string{"v/c=b", "v/c=common"}},
				{PoolName: "pool", DeviceName: "dall", CdiDeviceIds: []string{"v/c=all"}},
				{RequestNames: []string{"c"}, PoolName: "pool", DeviceName: "dc"}}}
		}
		defer n.come(x, "/x")()
		p := claimer("p", "c")
		n.claim("c", []string{"x.example.com"}, p)
		n.prepare(p)
		for request, want := range map[string]string{"": "v/c=a v/c=common v/c=b v/c=all", "a": "v/c=a v/c=common v/c=all", "b": "v/c=b v/c=common v/c=all", "c": "v/c=all"} {
			p.Spec.Containers[0].Resources.Claims[0].Request = request
			if got := n.cdi(p); got != want {
				t.Errorf("%q: %s, want %s", request, got, want)
			}
		}
		p.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "e-c", Request: "a"}, {Name: "e-c", Request: "c"}}
		var names []string
		for _, r := range n.set.Resources(p, "app") {
			for _, d := range r.ClaimResources {
				names = append(names, r.ClaimName+"/"+d.DeviceName)
			}
		}
		if got := strings.Join(names, " "); got != "c/da c/dall c/dc" {
			t.Error(got)
		}
		p.Spec.Containers[0].Resources.Claims = nil
		if got := n.cdi(p); got != "" || n.set.Resources(p, "app") != nil || n.set.Health(p, "app") != nil {
			t.Error("a container that names no claim has", got)
		}
		n.release(p)
		n.empty()
	})
}

// The claim that the scheduler made for extended resources: containers have what the pod's status says, and only the pod whose it is.
func TestExtendedResources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x := dratest.New("x.example.com")
		x.Prepare = func(*drapb.Claim) *drapb.NodePrepareResourceResponse {
			return &drapb.NodePrepareResourceResponse{Devices: []*drapb.Device{
				{RequestNames: []string{"container-0-request-0"}, PoolName: "pool", DeviceName: "d0", CdiDeviceIds: []string{"v/c=0"}},
				{RequestNames: []string{"container-1-request-0"}, PoolName: "pool", DeviceName: "d1", CdiDeviceIds: []string{"v/c=1"}}}}
		}
		defer n.come(x, "/x")()
		p := claimer("p", "own")
		two := corev1.ResourceList{"example.com/gpu": resource.MustParse("1"), "example.com/none": resource.MustParse("0")}
		p.Spec.Containers[0].Resources.Claims, p.Spec.Containers[0].Resources.Requests = nil, two
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "more", Resources: corev1.ResourceRequirements{Requests: two}}, corev1.Container{Name: "none"})
		p.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "special", RequestMappings: []corev1.ContainerExtendedResourceRequest{
			{ContainerName: "app", ResourceName: "example.com/gpu", RequestName: "container-0-request-0"},
			{ContainerName: "app", ResourceName: "example.com/none", RequestName: "container-1-request-0"}, // asks for nought
			{ContainerName: "more", ResourceName: "example.com/gpu", RequestName: "container-0-request-0"},
			{ContainerName: "more", ResourceName: "example.com/gpu", RequestName: "container-1-request-0"}}}
		n.claim("own", []string{"x.example.com"}, p)
		special := n.claim("special", []string{"x.example.com"}, p)
		if err := n.set.Prepare(t.Context(), p); err == nil || !strings.Contains(err.Error(), "Pod is not owner") || n.set.Ready(p) {
			t.Error("another's claim:", err)
		}
		special = special.DeepCopy()
		special.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID, Controller: new(true)}}
		n.api.Put(special)
		n.prepare(p)
		for i, want := range []string{"v/c=0", "v/c=0 v/c=1", ""} {
			c := &p.Spec.Containers[i]
			devices, err := n.set.Devices(p, c)
			var got []string
			for _, d := range devices {
				got = append(got, d.Name)
			}
			if strings.Join(got, " ") != want || err != nil {
				t.Errorf("container %s has %s, want %s: %v", c.Name, got, want, err)
			}
		}
		if got := fmt.Sprint(n.set.Health(p, "more")); !strings.Contains(got, "{claim:special/container-0-request-0 [{x.example.com/pool/d0 Unknown") ||
			!strings.Contains(got, "{claim:special/container-1-request-0 [{x.example.com/pool/d1 Unknown") {
			t.Error(got)
		}
		if got := n.set.Resources(p, "more"); len(got) != 1 || got[0].ClaimName != "special" || len(got[0].ClaimResources) != 2 {
			t.Error(got)
		}
		n.release(p)
		n.empty()
	})
}

func TestGenerated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x := dratest.New("x.example.com")
		defer n.come(x, "/x")()
		p := claimer("p", "made")
		template := "t"
		p.Spec.ResourceClaims[0].ResourceClaimName, p.Spec.ResourceClaims[0].ResourceClaimTemplateName = nil, &template
		n.fails(n.set.Prepare(t.Context(), p), "e-made")
		p.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "e-made", ResourceClaimName: new("made")}}
		c := n.claim("made", []string{"x.example.com"}, p)
		n.fails(n.set.Prepare(t.Context(), p), "was not created for Pod")
		c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: p.UID, Controller: new(true)}}
		n.api.Put(c)
		n.prepare(p)
		if got := n.cdi(p); got != "example.com/x-example-com=made" {
			t.Error(got)
		}
		n.release(p)
		// An entry that turned out not to need a claim has none.
		p.Status.ResourceClaimStatuses[0].ResourceClaimName = nil
		n.prepare(p)
		if got := n.cdi(p); got != "" {
			t.Error(got)
		}
		n.empty()
	})
}

func TestRefused(t *testing.T) {
	for want, spoil := range map[string]func(*resourcev1.ResourceClaim){
		"is not allocated":                func(c *resourcev1.ResourceClaim) { c.Status.Allocation = nil },
		"is not allowed to use":           func(c *resourcev1.ResourceClaim) { c.Status.ReservedFor[0].UID = "other" },
		`"c" not found`:                   func(c *resourcev1.ResourceClaim) { c.Name = "other" },
		"y.example.com is not registered": func(c *resourcev1.ResourceClaim) { c.Status.Allocation.Devices.Results[0].Driver = "y.example.com" },
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t)
			x := dratest.New("x.example.com")
			defer n.come(x, "/x")()
			p := claimer("p", "c")
			c := n.claim("c", []string{"x.example.com", "x.example.com"}, p)
			if want == `"c" not found` {
				if err := n.api.Delete(t.Context(), c.DeepCopy(), deleteAny); err != nil {
					t.Fatal(err)
				}
			}
			spoil(c)
			n.api.Put(c)
			n.fails(n.set.Prepare(t.Context(), p), want)
			n.calls(x)
			n.empty()
		})
	}
}

func TestHostileAnswers(t *testing.T) {
	type answer = drapb.NodePrepareResourceResponse
	long := strings.Repeat("x", 1<<16)
	for want, say := range map[string]*answer{
		"says nothing of it":                    nil,
		"failed for ResourceClaim c: broken":    {Error: "broken"},
		"xxx...":                                {Error: long},
		"without pool_name":                     {Devices: []*drapb.Device{{DeviceName: "d"}}},
		"a device without":                      {Devices: []*drapb.Device{nil}},
		"name of 0 bytes in cdi_device_ids":     {Devices: []*drapb.Device{{PoolName: "p", DeviceName: "d", CdiDeviceIds: []string{""}}}},
		"name of 65536 bytes in cdi_device_ids": {Devices: []*drapb.Device{{PoolName: "p", DeviceName: "d", CdiDeviceIds: []string{long}}}},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t)
			x := dratest.New("x.example.com")
			x.Prepare = func(*drapb.Claim) *answer { return say }
			defer n.come(x, "/x")()
			p := claimer("p", "c")
			n.claim("c", []string{"x.example.com"}, p)
			err := n.set.Prepare(t.Context(), p)
			n.fails(err, want)
			if len(err.Error()) > 2000 {
				t.Error("an error of", len(err.Error()), "bytes")
			}
			if n.set.Ready(p) {
				t.Error("ready by an answer that cannot be used")
			}
			x.Change(func() { x.Prepare = nil })
			n.prepare(p)
			n.release(p)
			n.empty()
		})
	}
}

func TestHostileCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x, y := dratest.New("x.example.com"), dratest.New("y.example.com")
		defer n.come(x, "/x")()
		defer n.come(y, "/y")()
		p, q := claimer("p", "c"), claimer("q", "other")
		n.claim("c", []string{"x.example.com"}, p)
		n.claim("other", []string{"y.example.com"}, q)
		x.Before = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		began := time.Now()
		done := make(chan error)
		go func() { done <- n.set.Prepare(t.Context(), p) }()
		synctest.Wait()
		n.prepare(q) // a driver that hangs keeps nobody else waiting
		if time.Since(began) > 0 {
			t.Error("waited for another's driver")
		}
		n.fails(<-done, "DeadlineExceeded")
		if took := time.Since(began); took != callLimit {
			t.Error(took)
		}
		n.fails(n.set.Release(t.Context(), p.UID), "DeadlineExceeded")
		x.Change(func() { x.Before = func(context.Context, string) error { return errors.New("broken") } })
		n.fails(n.set.Release(t.Context(), p.UID), "broken")
		x.Change(func() { x.Before = nil })
		type answer = drapb.NodeUnprepareResourceResponse
		for want, say := range map[string]*answer{"says nothing of it": nil, "failed for ResourceClaim c: busy": {Error: "busy"}} {
			x.Change(func() { x.Unprepare = func(*drapb.Claim) *answer { return say } })
			n.fails(n.set.Release(t.Context(), p.UID), want)
			if !n.set.Holds(p.UID) {
				t.Error("let go of what is still prepared")
			}
		}
		x.Change(func() { x.Unprepare = nil })
		n.release(p)
		n.release(q)
		n.empty()
	})
}

// What one driver has taken back is not asked of it again; a pod that comes meanwhile has it prepared anew.
func TestUnprepareInPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x, y := dratest.New("x.example.com"), dratest.New("y.example.com")
		defer n.come(x, "/x")()
		gone := n.come(y, "/y")
		p, q := claimer("p", "c"), claimer("q", "c")
		both := []string{"x.example.com", "y.example.com"}
		n.claim("c", both, p, q)
		n.prepare(p)
		gone()
		n.fails(n.set.Release(t.Context(), p.UID), "y.example.com is not registered")
		n.fails(n.set.Release(t.Context(), p.UID), "y.example.com is not registered")
		n.calls(x, "prepare c", "unprepare c")
		n.fails(n.set.Prepare(t.Context(), q), "y.example.com is not registered")
		// A claim that was allocated anew waits for the old devices.
		c := n.claim("c", both, q)
		c.Status.Allocation.Devices.Results[0].Device = "another"
		n.api.Put(c)
		n.fails(n.set.Prepare(t.Context(), q), "allocated anew")
		defer n.come(y, "/y")()
		n.release(p)
		n.prepare(q)
		n.calls(x, "prepare c")
		n.calls(y, "prepare c", "unprepare c", "prepare c")
		n.release(q)
		n.empty()
	})
}

// A kubelet that is killed at any point of a call leaves a successor that knows what may be prepared.
func TestKilled(t *testing.T) {
	for _, at := range []string{"prepare", "prepared", "unprepare", "unprepared"} {
		for _, boot := range []string{"b1", "b2"} {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				x := dratest.New("x.example.com")
				gone := n.come(x, "/x")
				p, q := claimer("p", "c"), claimer("q", "c")
				n.claim("c", []string{"x.example.com"}, p, q)
				// The kubelet is killed while the driver is called: what comes of the call is not seen.
				kill := func(call string, f func(context.Context) error) {
					x.Change(func() {
						x.Before = func(_ context.Context, called string) error {
							if called == call {
								time.Sleep(time.Hour)
							}
							return nil
						}
					})
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					if err := f(ctx); err == nil {
						t.Error("not killed")
					}
					time.Sleep(2 * time.Hour) // the driver does it nonetheless
					x.Change(func() { x.Before = nil })
				}
				switch at {
				case "prepare":
					kill("prepare", func(ctx context.Context) error { return n.set.Prepare(ctx, p) })
				case "prepared":
					n.prepare(p)
				case "unprepare":
					n.prepare(p)
					kill("unprepare", func(ctx context.Context) error { return n.set.Release(ctx, p.UID) })
				case "unprepared":
					n.prepare(p)
					n.release(p)
				}
				gone()
				n.stop()
				n.boot = boot
				n.start()
				if holds := n.set.Holds(p.UID); holds != (at != "unprepared") {
					t.Error(at, "holds:", holds)
				}
				if ready := n.set.Ready(p); ready != (at == "prepared" && boot == "b1") {
					t.Error(at, boot, "ready:", ready)
				} else if _, err := n.set.Devices(p, &p.Spec.Containers[0]); (err == nil) != ready {
					t.Error(at, boot, "ready:", ready, "but devices:", err)
				}
				defer n.come(x, "/x")()
				x.Calls()
				n.prepare(q)
				if calls := x.Calls(); len(calls) != 1 && !(at == "prepared" && boot == "b1" && len(calls) == 0) {
					t.Error(at, boot, calls)
				}
				n.release(p)
				if !n.set.Ready(q) {
					t.Error("another's end has taken the claim")
				}
				n.release(q)
				n.empty()
			})
		}
	}
}

func TestVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x := dratest.New("x.example.com")
		x.Versions = []string{drapbv1beta1.DRAPluginService}
		defer n.come(x, "/x")()
		p := claimer("p", "c")
		n.claim("c", []string{"x.example.com"}, p)
		n.prepare(p)
		if got := n.cdi(p); got != "example.com/x-example-com=c" {
			t.Error(got)
		}
		n.release(p)
		n.empty()
		for want, d := range map[string]*dratest.Driver{
			"this node calls v1.DRAPlugin or v1beta1.DRAPlugin": {Name: "x.example.com", Versions: []string{"v1alpha4.Node"}},
			"is not that of a DRA driver":                       {Name: "No Name"},
		} {
			n.fails(n.set.Serve(t.Context(), d.Registration("/x"), func() { t.Error("registered") }), want)
		}
	})
}

// While a driver is upgraded there are two of its name: the newer is called, and the older again where that goes.
func TestUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		old, fresh := dratest.New("x.example.com"), dratest.New("x.example.com")
		defer n.come(old, "/old")()
		gone := n.come(fresh, "/fresh")
		p := claimer("p", "c")
		n.claim("c", []string{"x.example.com"}, p)
		n.prepare(p)
		n.calls(fresh, "prepare c")
		gone()
		n.release(p)
		n.calls(old, "unprepare c")
		if h := n.set.Holders(); len(h) > 0 {
			t.Error(h)
		}
	})
}
