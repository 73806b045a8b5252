package dra

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	healthv1 "k8s.io/kubelet/pkg/apis/dra-health/v1"
	healthv1alpha1 "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/dra/dratest"
)

var deleteAny = client.DeleteOptions{AnyRevision: true}

// publish puts a ResourceSlice of the driver on a node.
func (n *node) publish(driver, on string) {
	s := &resourcev1.ResourceSlice{TypeMeta: metav1.TypeMeta{APIVersion: "resource.k8s.io/v1", Kind: "ResourceSlice"}, ObjectMeta: metav1.ObjectMeta{Name: on + "-" + driver}}
	s.Spec.Driver, s.Spec.NodeName = driver, &on
	n.api.Put(s)
}

// slices wants that these ResourceSlices are there.
func (n *node) slices(want ...string) {
	n.Helper()
	synctest.Wait()
	list, _, _ := n.api.List(n.Context(), api.ResourceSliceKind, client.Query{})
	var have []string
	for _, s := range list {
		have = append(have, s.GetName())
	}
	if !slices.Equal(have, want) {
		n.Errorf("ResourceSlices %q, want %q", have, want)
	}
}

func TestSlices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.stop()
		n.publish("x.example.com", "n1")
		n.publish("x.example.com", "n2")
		n.publish("y.example.com", "n1")
		n.start()
		x, y := dratest.New("x.example.com"), dratest.New("y.example.com")
		defer n.come(y, "/y")()
		n.slices("n1-x.example.com", "n1-y.example.com", "n2-x.example.com")
		time.Sleep(startGrace + time.Second)
		n.slices("n1-y.example.com", "n2-x.example.com") // x has not come yet
		gone := n.come(x, "/x")
		n.publish("x.example.com", "n1")
		all := []string{"n1-x.example.com", "n1-y.example.com", "n2-x.example.com"}
		// One that comes back in time keeps its own.
		gone()
		time.Sleep(grace - time.Second)
		gone = n.come(x, "/x")
		time.Sleep(time.Hour)
		n.slices(all...)
		// While one is upgraded there are two, and the newer is called.
		later := n.come(x, "/x2")
		gone()
		time.Sleep(time.Hour)
		n.slices(all...)
		later()
		time.Sleep(grace - time.Second)
		n.slices(all...)
		time.Sleep(2 * time.Second)
		n.slices(all[1:]...)
	})
}

// A driver that is killed leaves its socket: it is gone when it does not answer.
func TestSlicesOfDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x := dratest.New("x.example.com")
		stop := x.Serve(n.sockets.Listen("/x"))
		defer n.register(x, "/x")()
		n.publish("x.example.com", "n1")
		stop()
		time.Sleep(grace / 2)
		n.slices("n1-x.example.com")
		time.Sleep(grace)
		n.slices()
		// It is back, and publishes.
		defer x.Serve(n.sockets.Listen("/x"))()
		time.Sleep(time.Minute)
		n.publish("x.example.com", "n1")
		time.Sleep(time.Hour)
		n.slices("n1-x.example.com")
		// One that never answers does not count.
		defer n.register(dratest.New("never.example.com"), "/never")()
		n.publish("never.example.com", "n1")
		time.Sleep(2 * time.Minute)
		n.slices("n1-x.example.com")
	})
}

func is(device string, h healthv1.HealthStatus, seconds int64, message string) *healthv1.DeviceHealth {
	return &healthv1.DeviceHealth{Device: &healthv1.DeviceIdentifier{PoolName: "pool", DeviceName: device}, Health: h, HealthCheckTimeoutSeconds: seconds, Message: message}
}

func TestHealth(t *testing.T) {
	for _, version := range []string{healthv1.DRAResourceHealthService, healthv1alpha1.DRAResourceHealthService} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t)
			x := dratest.New("x.example.com")
			x.Versions = []string{drapb.DRAPluginService, version}
			gone := n.come(x, "/x")
			p := claimer("p", "c")
			p.Spec.Containers[0].Resources.Claims[0].Request = "one"
			n.claim("c", []string{"x.example.com"}, p)
			if h := n.set.Health(p, "app"); h != nil {
				t.Error("before it is prepared:", h)
			}
			n.prepare(p)
			wants := func(woken bool, want string) {
				t.Helper()
				if w := n.wakes(); slices.Contains(w, p.UID) != woken || len(w) > 1 {
					t.Errorf("woken %v, want %v", w, woken)
				}
				text := fmt.Sprint(n.set.Health(p, "app"))
				if h := n.set.Health(p, "app"); len(h) == 1 && len(h[0].Resources) == 1 {
					text = fmt.Sprintf("%s %s %s", h[0].Name, h[0].Resources[0].ResourceID, h[0].Resources[0].Health)
					if m := h[0].Resources[0].Message; m != nil {
						text += " " + *m
					}
				}
				if text != "claim:e-c/one x.example.com/pool/d-c "+want {
					t.Error(text, "want", want)
				}
			}
			wants(false, "Unknown")
			healthy, unhealthy := healthv1.HealthStatus_HEALTHY, healthv1.HealthStatus_UNHEALTHY
			say := func(d ...*healthv1.DeviceHealth) { x.Say(d...); time.Sleep(time.Second) }
			say(is("d-c", healthy, 0, ""), is("other", healthy, 0, ""), nil)
			wants(true, "Healthy")
			say(is("d-c", healthy, -5, ""))
			wants(false, "Healthy")
			say(is("d-c", unhealthy, 0, "too hot"))
			wants(true, "Unhealthy too hot")
			say(is("d-c", unhealthy, 0, strings.Repeat("x", 5000)))
			wants(true, "Unhealthy "+strings.Repeat("x", 1021)+"...")
			say(is("other", healthy, 1<<62, "")) // what is left out stays until it is too old
			wants(false, "Unhealthy "+strings.Repeat("x", 1021)+"...")
			time.Sleep(healthLimit)
			wants(true, "Unknown")
			say(is("d-c", healthy, 3600, ""))
			wants(true, "Healthy")
			time.Sleep(59 * time.Minute)
			wants(false, "Healthy")
			for i := range mostDevices + 100 { // made up names are not kept
				n.set.hear("x.example.com", []*healthv1.DeviceHealth{is(fmt.Sprint("made-up-", i), healthy, 1<<40, "")}, time.Now())
			}
			n.set.mu.Lock()
			if len(n.set.health) > mostDevices+2 {
				t.Error(len(n.set.health), "devices are remembered")
			}
			n.set.mu.Unlock()
			n.wakes()
			say(is("d-c", healthy, 3600, ""))
			n.wakes()
			gone()
			wants(true, "Unknown")
			gone = n.come(x, "/x")
			time.Sleep(time.Second)
			wants(true, "Healthy")
			n.release(p)
			gone()
			if w := n.wakes(); !slices.Equal(w, []types.UID(nil)) {
				t.Error(w)
			}
		})
	}
}

// What a driver has said outlasts the kubelet, as long as it holds and the driver is not gone.
func TestHealthOverRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x := dratest.New("x.example.com")
		p := claimer("p", "c")
		n.claim("c", []string{"x.example.com"}, p)
		shows := func(what, want string) {
			t.Helper()
			h := n.set.Health(p, "app")[0].Resources[0]
			if got := string(h.Health); got != want || want == "Unhealthy" && (h.Message == nil || *h.Message != "hot") {
				t.Errorf("%s: %v, want %s", what, h, want)
			}
		}
		gone := n.come(x, "/x")
		x.Say(is("d-c", healthv1.HealthStatus_UNHEALTHY, 600, "hot"), is("unused", healthv1.HealthStatus_HEALTHY, 600, ""))
		time.Sleep(time.Second) // before it is used
		n.prepare(p)
		shows("at first", "Unhealthy")
		restart := func(boot string) {
			n.stop()
			gone()
			n.boot = boot
			n.start()
			n.wakes()
		}
		restart("b1")
		shows("after a restart", "Unhealthy")
		if b, err := os.ReadFile(n.set.healthPath()); err != nil || strings.Contains(string(b), "unused") {
			t.Error(string(b), err)
		}
		gone = n.come(x, "/x")
		shows("the driver has come", "Unhealthy")
		x.Say(is("d-c", healthv1.HealthStatus_HEALTHY, 600, ""))
		time.Sleep(time.Second)
		shows("it tells", "Healthy")
		restart("b1")
		time.Sleep(9 * time.Minute)
		shows("it does not come", "Healthy")
		time.Sleep(2 * time.Minute)
		shows("what it said is too old", "Unknown")
		if w := n.wakes(); !slices.Contains(w, p.UID) {
			t.Error("the pod was not woken:", w)
		}
		gone = n.come(x, "/x")
		x.Say(is("d-c", healthv1.HealthStatus_HEALTHY, 3600, ""))
		time.Sleep(time.Second)
		gone()
		shows("it has gone", "Unknown")
		gone = func() {}
		restart("b1")
		shows("it has gone before", "Unknown")
		gone = n.come(x, "/x")
		x.Say(is("d-c", healthv1.HealthStatus_HEALTHY, 3600, ""))
		time.Sleep(time.Second)
		restart("b2")
		if h := n.set.Health(p, "app"); len(h) > 0 && h[0].Resources[0].Health != "Unknown" {
			t.Error("after the host booted:", h)
		}
		if err := os.WriteFile(n.set.healthPath(), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		gone = func() {}
		restart("b2") // what cannot be read hinders nobody
		gone = n.come(x, "/x")
		n.release(p)
		gone()
		n.empty()
	})
}

// A driver that speaks without end has pods looked at a few times only.
func TestHealthFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x := dratest.New("x.example.com")
		defer n.come(x, "/x")()
		p := claimer("p", "c")
		n.claim("c", []string{"x.example.com"}, p)
		n.prepare(p)
		for i := range 1000 {
			x.Say(is("d-c", healthv1.HealthStatus(1+i%2), 0, fmt.Sprint(i)))
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		if w := n.wakes(); len(w) > 21 || len(w) == 0 {
			t.Error(len(w), "times")
		}
		if h := n.set.Health(p, "app"); *h[0].Resources[0].Message != "999" {
			t.Error(h)
		}
	})
}
