package dra

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	healthv1 "k8s.io/kubelet/pkg/apis/dra-health/v1"

	"github.com/yare-dev/yare/kubelet/registrar"
	"github.com/yare-dev/yare/run"
)

const (
	// healthLimit is how long what a driver said of a device holds, unless it says; upstream's.
	healthLimit = 30 * time.Second
	healthMost  = 365 * 24 * time.Hour
	// mostDevices bounds how many unused devices are remembered of a driver beside those that it speaks of now.
	mostDevices = 4096
	// healthPause is how soon another word of a driver is taken up after one: each may have pods' statuses written.
	healthPause = 50 * time.Millisecond
	healthAgain = 5 * time.Second // after a stream broke; upstream's
)

type deviceKey struct{ driver, pool, device string }

// health is what a driver said of a device.
type health struct {
	status  corev1.ResourceHealthStatus
	message string
	until   time.Time
}

// watchHealth takes up what the driver says of its devices, and looks after what is too old, until ctx ends.
func (s *Set) watchHealth(ctx context.Context, d *driver) {
	said := make(chan []*healthv1.DeviceHealth, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.readHealth(ctx, d, said) })
	for {
		var timer <-chan time.Time
		if next := s.expire(d.name, time.Now()); !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-timer:
			continue
		case list := <-said:
			s.hear(d.name, list, time.Now())
			s.keepHealth()
		}
		if run.Pause(ctx, healthPause) != nil {
			return
		}
	}
}

// readHealth reads what the driver says, and keeps the newest that was not taken up, until ctx ends.
func (s *Set) readHealth(ctx context.Context, d *driver, said chan []*healthv1.DeviceHealth) {
	for {
		stream, err := d.health.NodeWatchResources(ctx, &healthv1.NodeWatchResourcesRequest{}, grpc.WaitForReady(true))
		for err == nil {
			var r *healthv1.NodeWatchResourcesResponse
			if r, err = stream.Recv(); err != nil {
				break
			}
			select {
			case <-said:
			default:
			}
			said <- r.Devices
		}
		switch {
		case ctx.Err() != nil:
			return
		case status.Code(err) == codes.Unimplemented:
			return // upstream's helper offers the service for every driver, and says here whether it means it
		}
		s.log.Debug("DRA driver tells no more of its devices' health", "driver", d.name, "err", err)
		if run.Pause(ctx, healthAgain) != nil {
			return
		}
	}
}

// hear takes up a driver's list. Devices that are missing in it are what they were until that is too old.
func (s *Set) hear(driver string, list []*healthv1.DeviceHealth, now time.Time) {
	fresh := make(map[deviceKey]health, len(list))
	for _, d := range list {
		if d.GetDevice() == nil {
			continue
		}
		limit := healthLimit
		if n := d.HealthCheckTimeoutSeconds; n > 0 {
			limit = time.Duration(min(n, int64(healthMost/time.Second))) * time.Second
		}
		fresh[deviceKey{driver, d.Device.PoolName, d.Device.DeviceName}] = health{status: healthStatus(d.Health), message: registrar.Cut(d.Message), until: now.Add(limit)}
	}
	s.mu.Lock()
	used := s.users(driver)
	var wake []types.UID
	more := 0
	for key, before := range s.health {
		if _, again := fresh[key]; key.driver == driver && !again && used[key] == nil {
			if more++; more > mostDevices { // a driver that makes up names would fill the memory
				delete(s.health, key)
			}
		} else if again && (before.status != fresh[key].status || before.message != fresh[key].message) {
			wake = append(wake, used[key]...)
		}
	}
	for key, h := range fresh {
		if _, known := s.health[key]; !known {
			wake = append(wake, used[key]...)
		}
		s.health[key] = h
	}
	s.mu.Unlock()
	s.wake(wake)
}

func healthStatus(h healthv1.HealthStatus) corev1.ResourceHealthStatus {
	switch h {
	case healthv1.HealthStatus_HEALTHY:
		return corev1.ResourceHealthStatusHealthy
	case healthv1.HealthStatus_UNHEALTHY:
		return corev1.ResourceHealthStatusUnhealthy
	}
	return corev1.ResourceHealthStatusUnknown
}

// expire forgets what is too old, and returns when the next is.
func (s *Set) expire(driver string, now time.Time) (next time.Time) {
	s.mu.Lock()
	var used map[deviceKey][]types.UID
	var wake []types.UID
	for key, h := range s.health {
		switch {
		case key.driver != driver:
		case !h.until.After(now):
			if used == nil {
				used = s.users(driver)
			}
			wake = append(wake, used[key]...)
			delete(s.health, key)
		case next.IsZero() || h.until.Before(next):
			next = h.until
		}
	}
	s.mu.Unlock()
	s.wake(wake)
	return next
}

// forgetHealth forgets what a driver said that is gone.
func (s *Set) forgetHealth(driver string) {
	s.mu.Lock()
	used := s.users(driver)
	var wake []types.UID
	for key := range s.health {
		if key.driver == driver {
			wake = append(wake, used[key]...)
			delete(s.health, key)
		}
	}
	ends := s.ctx != nil && s.ctx.Err() != nil
	s.mu.Unlock()
	if !ends { // else the driver has not gone, but the kubelet does
		s.keepHealth()
	}
	s.wake(wake)
}

// users returns the pods that use devices of the driver. s.mu is held.
func (s *Set) users(driver string) map[deviceKey][]types.UID {
	out := map[deviceKey][]types.UID{}
	for _, r := range s.records {
		if p := r.Drivers[driver]; p != nil {
			for _, d := range p.Devices {
				key := deviceKey{driver, d.Pool, d.Name}
				out[key] = append(out[key], r.Pods...)
			}
		}
	}
	return out
}

func (s *Set) wake(pods []types.UID) {
	slices.Sort(pods)
	for _, uid := range slices.Compact(pods) {
		s.config.Wake(uid)
	}
}

// Health returns how the devices of a container are, nil where it has none.
func (s *Set) Health(pod *corev1.Pod, container string) (out []corev1.ResourceStatus) {
	for _, u := range s.uses(pod, container) {
		if u.record == nil { // not yet, or no more
			continue
		}
		name := "claim:" + u.entry
		if u.request != "" {
			name += "/" + u.request
		}
		r := corev1.ResourceStatus{Name: corev1.ResourceName(name)}
		s.mu.Lock()
		for _, d := range u.devices {
			one := corev1.ResourceHealth{ResourceID: corev1.ResourceID(fmt.Sprintf("%s/%s/%s", d.driver, d.Pool, d.Name)), Health: corev1.ResourceHealthStatusUnknown}
			if h, ok := s.health[deviceKey{d.driver, d.Pool, d.Name}]; ok {
				one.Health = h.status
				if h.message != "" {
					one.Message = &h.message
				}
			}
			if !slices.ContainsFunc(r.Resources, func(o corev1.ResourceHealth) bool { return o.ResourceID == one.ResourceID }) {
				r.Resources = append(r.Resources, one)
			}
		}
		s.mu.Unlock()
		out = append(out, r)
	}
	return out
}
