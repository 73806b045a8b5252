package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// meddler writes to a claim before the scheduler does, or refuses or loses writes.
type meddler struct {
	client.Client
	before func(ctx context.Context, c *resourcev1.ResourceClaim, sub string) error
	after  func(c *resourcev1.ResourceClaim, sub string) error
	post   int // bindings that fail
}

func (m *meddler) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	c, ok := o.(*resourcev1.ResourceClaim)
	if ok && m.before != nil {
		if err := m.before(ctx, c, sub); err != nil {
			return nil, err
		}
	}
	got, err := m.Client.Update(ctx, o, sub)
	if ok && err == nil && m.after != nil {
		if err := m.after(c, sub); err != nil {
			return nil, err
		}
	}
	return got, err
}

func (m *meddler) Post(ctx context.Context, k *api.Kind, key api.Key, sub string, body api.Object) (api.Object, error) {
	if m.post > 0 {
		m.post--
		return nil, apierrors.NewInternalError(errors.New("not now"))
	}
	return m.Client.Post(ctx, k, key, sub, body)
}

// Whatever happens to the writes, the pod gets its device in the end, and no device is lost to others.
func TestClaimWritesFail(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]func(m *meddler){
		"others write": func(m *meddler) {
			left := 6
			m.before = func(ctx context.Context, c *resourcev1.ResourceClaim, _ string) error {
				if left--; left < 0 {
					return nil
				}
				now, err := client.Get[*resourcev1.ResourceClaim](ctx, m.Client, api.KeyOf(c))
				if err == nil {
					_, err = client.Mutate(ctx, m.Client, now, "", func(c *resourcev1.ResourceClaim) { c.Labels = map[string]string{"n": fmt.Sprint(left)} })
				}
				return err
			}
		},
		"refused": func(m *meddler) {
			left := 5
			m.before = func(_ context.Context, c *resourcev1.ResourceClaim, sub string) error {
				if left--; left < 0 {
					return nil
				}
				return apierrors.NewInternalError(errors.New("not now"))
			}
		},
		"the second is refused": func(m *meddler) {
			left := 3
			m.before = func(_ context.Context, c *resourcev1.ResourceClaim, sub string) error {
				if c.Name != "b" || left == 0 {
					return nil
				}
				left--
				return apierrors.NewInternalError(errors.New("not now"))
			}
		},
		"answers are lost": func(m *meddler) {
			left := 5
			m.after = func(c *resourcev1.ResourceClaim, sub string) error {
				if left--; left < 0 {
					return nil
				}
				return errors.New("connection reset by peer")
			}
		},
		"binding fails": func(m *meddler) { m.post = 3 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := &meddler{}
			m(x)
			bubble(t, func(c client.Client) client.Client { x.Client = c; return x }, func(b *bench) {
				b.deviceClass("gpu")
				b.node(makeNode("n1"))
				b.devices("n1", "d1", "d2")
				b.devicesWanted("a", 1)
				b.devicesWanted("b", 1)
				b.create(makePod("p", withDevices("a", "b")))
				time.Sleep(time.Minute)
				b.expect("p", "n1", "")
				if a, c := b.has("a"), b.has("b"); a == c || !strings.HasSuffix(a, " for p") || !strings.HasSuffix(c, " for p") {
					t.Errorf("claims have %q and %q", a, c)
				}
				b.end("p")
				b.create(makePod("q", withDevices("a", "b")))
				time.Sleep(time.Minute)
				b.expect("q", "n1", "")
			})
		})
	}
}

// A pod that goes while its claim is being written leaves no reservation.
func TestPodGoesMeanwhile(t *testing.T) {
	t.Parallel()
	x := &meddler{}
	bubble(t, func(c client.Client) client.Client { x.Client = c; return x }, func(b *bench) {
		x.after = func(c *resourcev1.ResourceClaim, sub string) error {
			if p, err := client.Get[*corev1.Pod](b.t.Context(), b.Client, api.Key{Namespace: "default", Name: "p"}); err == nil && sub == "status" {
				grace := int64(0)
				return b.Delete(b.t.Context(), p, client.DeleteOptions{Grace: &grace})
			}
			return nil
		}
		b.deviceClass("gpu")
		b.node(makeNode("n1"))
		b.devices("n1", "d1")
		b.devicesWanted("a", 1)
		b.create(makePod("p", withDevices("a")))
		time.Sleep(time.Minute)
		b.expectClaim("a", "n1/d1 for ")
		b.create(makePod("q", withDevices("a")))
		time.Sleep(time.Minute)
		b.expectClaim("a", "n1/d1 for q")
		b.expect("q", "n1", "")
	})
}

// A scheduler that is started anew goes on where the one before it was.
func TestDevicesAfterRestart(t *testing.T) {
	t.Parallel()
	x := &meddler{post: 1 << 30}
	var first client.Client
	bubble(t, func(c client.Client) client.Client { first = c; x.Client = c; return x }, func(b *bench) {
		b.deviceClass("gpu")
		b.node(makeNode("n1"))
		b.node(makeNode("n2"))
		b.devices("n1", "d")
		b.devices("n2", "d")
		b.devicesWanted("a", 1)
		b.create(makePod("p", withDevices("a"), func(p *corev1.Pod) { p.Spec.SchedulerName = "other" }))
		// What one leaves that was killed before it bound the pod.
		p := b.pod("p")
		b.claimStatus("a", func(c *resourcev1.ResourceClaim) {
			c.Status.Allocation = &resourcev1.AllocationResult{
				Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{{Request: "r", Driver: driver, Pool: "n2", Device: "d"}}},
				NodeSelector: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"n2"}}}}}},
			}
			c.Status.ReservedFor = []resourcev1.ResourceClaimConsumerReference{{Resource: "pods", Name: "p", UID: p.UID}}
		})
		ctx, cancel := context.WithCancel(b.t.Context())
		done := make(chan error, 1)
		go func() {
			done <- New(Config{Profile: "other", Client: first, Log: slog.New(slog.DiscardHandler), Seed: 2}).Run(ctx, func() {})
		}()
		b.devicesWanted("b", 1)
		b.create(makePod("q", withDevices("b"), func(p *corev1.Pod) { p.Spec.SchedulerName = "other" }))
		time.Sleep(time.Minute)
		b.expect("p", "n2", "")
		b.expect("q", "n1", "")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Whatever fails, and however pods come and go, no device is ever given twice, and none is lost.
func TestNoDeviceTwice(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 7))
			var mu sync.Mutex
			x := &meddler{}
			luck := func(_ *resourcev1.ResourceClaim) int {
				mu.Lock()
				defer mu.Unlock()
				return r.IntN(10)
			}
			x.before = func(ctx context.Context, c *resourcev1.ResourceClaim, _ string) error {
				switch luck(c) {
				case 0:
					return apierrors.NewInternalError(errors.New("not now"))
				case 1:
					now, err := client.Get[*resourcev1.ResourceClaim](ctx, x.Client, api.KeyOf(c))
					if err == nil {
						_, err = client.Mutate(ctx, x.Client, now, "", func(c *resourcev1.ResourceClaim) { c.Labels = map[string]string{"v": now.ResourceVersion} })
					}
					return err
				}
				return nil
			}
			x.after = func(c *resourcev1.ResourceClaim, _ string) error {
				if luck(c) == 0 {
					return errors.New("connection reset by peer")
				}
				return nil
			}
			bubble(t, func(c client.Client) client.Client { x.Client = c; return x }, func(b *bench) {
				b.deviceClass("gpu")
				for _, n := range []string{"n1", "n2", "n3"} {
					b.node(makeNode(n))
					b.devices(n, "d1", "d2", "d3")
				}
				var live []string
				for i := range 120 {
					name := fmt.Sprint("p", i)
					mu.Lock()
					count, end := int64(1+r.IntN(2)), len(live) > 0 && r.IntN(3) > 0
					victim := r.IntN(len(live) + 1)
					wait := time.Duration(r.IntN(40)) * time.Millisecond
					mu.Unlock()
					b.devicesWanted(name, count)
					b.create(makePod(name, withDevices(name)))
					live = append(live, name)
					time.Sleep(wait)
					if end && victim < len(live) {
						b.end(live[victim])
						live = append(live[:victim], live[victim+1:]...)
					}
					b.noneTwice()
				}
				for len(live) > 3 {
					b.end(live[0])
					live = live[1:]
				}
				for range 3 { // what was written too late gives its devices back
					time.Sleep(10 * time.Minute)
					b.noneTwice()
					b.giveBack()
				}
				time.Sleep(10 * time.Minute)
				for _, name := range live { // three nodes have room for three that want two, and for three that want one
					if p := b.pod(name); p.Spec.NodeName == "" {
						t.Errorf("pod %s waits: %+v", name, p.Status.Conditions)
					}
				}
			})
		})
	}
}

// giveBack does what the controller does: claims that no pod uses have no devices.
func (b *bench) giveBack() {
	b.t.Helper()
	claims, err := client.List[*resourcev1.ResourceClaim](b.t.Context(), b.Client, client.Query{})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range claims {
		_, err := client.Get[*corev1.Pod](b.t.Context(), b.Client, api.KeyOf(c)) // of the same name
		if apierrors.IsNotFound(err) && c.Status.Allocation != nil {
			b.claimStatus(c.Name, func(c *resourcev1.ResourceClaim) { c.Status.Allocation, c.Status.ReservedFor = nil, nil })
		}
	}
}

// noneTwice checks that no device is given twice.
func (b *bench) noneTwice() {
	b.t.Helper()
	claims, err := client.List[*resourcev1.ResourceClaim](b.t.Context(), b.Client, client.Query{})
	if err != nil {
		b.t.Fatal(err)
	}
	by := map[string]string{}
	for _, c := range claims {
		if c.Status.Allocation == nil {
			continue
		}
		for _, r := range c.Status.Allocation.Devices.Results {
			device := r.Pool + "/" + r.Device
			if by[device] != "" {
				b.t.Errorf("%s has %s, which %s has", c.Name, device, by[device])
			}
			by[device] = c.Name
		}
	}
}
