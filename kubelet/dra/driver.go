package dra

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/validation"
	healthv1 "k8s.io/kubelet/pkg/apis/dra-health/v1"
	healthv1alpha1 "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	drapbv1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"

	"github.com/yare-dev/yare/kubelet/registrar"
)

// driver is one connection to a driver.
type driver struct {
	name   string
	conn   *grpc.ClientConn
	client drapb.DRAPluginClient
	health healthv1.DRAResourceHealthClient // nil: it tells nothing of its devices
	up     bool                             // it answers; under Set.mu
}

// driver returns the driver that is called by that name, nil where there is none.
func (s *Set) driver(name string) *driver {
	s.mu.Lock()
	defer s.mu.Unlock()
	if all := s.drivers[name]; len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

// Serve implements registrar.Handler.
func (s *Set) Serve(ctx context.Context, r registrar.Registration, ready func()) error {
	if e := validation.IsDNS1123Subdomain(r.Name); len(e) > 0 || len(r.Name) > 63 {
		return fmt.Errorf("name %.200q is not that of a DRA driver: at most 63 lower-case letters, digits, '-' and '.'", r.Name)
	}
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.config.Dial(ctx, r.Socket) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: callLimit,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, MaxDelay: 10 * time.Second}}))
	if err != nil {
		return err
	}
	defer conn.Close()
	d := &driver{name: r.Name, conn: conn}
	if err := d.choose(r.Versions); err != nil {
		return err
	}
	s.add(d)
	defer s.drop(d)
	s.config.Came()
	ready()
	var wg sync.WaitGroup
	defer wg.Wait()
	if d.health != nil {
		wg.Go(func() { s.watchHealth(ctx, d) })
	}
	s.watch(ctx, d)
	return nil
}

// choose takes the newest of the driver's services.
func (d *driver) choose(versions []string) error {
	switch {
	case slices.Contains(versions, drapb.DRAPluginService):
		d.client = drapb.NewDRAPluginClient(d.conn)
	case slices.Contains(versions, drapbv1beta1.DRAPluginService):
		d.client = drapbv1beta1.V1Beta1ClientWrapper{DRAPluginClient: drapbv1beta1.NewDRAPluginClient(d.conn)}
	default:
		return fmt.Errorf("DRA driver %s serves %.200q, and this node calls %s or %s", d.name, strings.Join(versions, ", "), drapb.DRAPluginService, drapbv1beta1.DRAPluginService)
	}
	switch {
	case slices.Contains(versions, healthv1.DRAResourceHealthService):
		d.health = healthv1.NewDRAResourceHealthClient(d.conn)
	case slices.Contains(versions, healthv1alpha1.DRAResourceHealthService):
		d.health = healthv1.V1Alpha1ClientWrapper{Client: healthv1alpha1.NewDRAResourceHealthClient(d.conn)}
	}
	return nil
}

// add makes the driver the one that is called by its name. It counts as there until it turns out that it does not answer.
func (s *Set) add(d *driver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drivers[d.name] = append(s.drivers[d.name], d)
	d.up = true
	delete(s.wipes, d.name)
}

func (s *Set) drop(d *driver) {
	s.mu.Lock()
	s.drivers[d.name] = slices.DeleteFunc(s.drivers[d.name], func(o *driver) bool { return o == d })
	last := len(s.drivers[d.name]) == 0
	if last {
		delete(s.drivers, d.name)
	}
	s.mu.Unlock()
	s.reach(d, false)
	if last {
		s.forgetHealth(d.name)
	}
}

// watch looks whether the driver answers, until ctx ends.
func (s *Set) watch(ctx context.Context, d *driver) {
	for {
		state := d.conn.GetState()
		switch state {
		case connectivity.Ready:
			s.reach(d, true)
		case connectivity.Idle:
			d.conn.Connect()
		case connectivity.TransientFailure:
			s.reach(d, false)
		}
		if !d.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// reach notes whether the driver answers: after a while without, nothing more is to be allocated of it.
func (s *Set) reach(d *driver, up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := d.up
	d.up = up
	switch {
	case up:
		delete(s.wipes, d.name)
	case was && !s.there(d.name):
		s.wipeAt(d.name, time.Now().Add(grace))
	}
}

// there reports whether a driver of that name answers. s.mu is held.
func (s *Set) there(name string) bool {
	return slices.ContainsFunc(s.drivers[name], func(d *driver) bool { return d.up })
}
