package dra

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/linux/durable"
)

// What drivers have said of devices that pods use outlasts the kubelet, but not the host: until they have come again, and as long as it holds, pods show it.
// It is written when it changes and not synced.

type keptHealth struct {
	Boot    string       `json:"boot"`
	Devices []keptDevice `json:"devices"`
}

type keptDevice struct {
	Driver  string                      `json:"driver"`
	Pool    string                      `json:"pool"`
	Device  string                      `json:"device"`
	Health  corev1.ResourceHealthStatus `json:"health"`
	Message string                      `json:"message,omitempty"`
	Until   time.Time                   `json:"until"`
}

func (s *Set) healthPath() string { return filepath.Join(s.config.Root, "dra_health.json") }

// openHealth reads what is kept. s.mu is held. Where it cannot be read, drivers say it again.
func (s *Set) openHealth(now time.Time) {
	b, err := os.ReadFile(s.healthPath())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var k keptHealth
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	if err != nil {
		s.log.Warn("health of devices is not known until their drivers tell it", "err", err)
		return
	}
	if k.Boot != s.config.Boot {
		return
	}
	for _, d := range k.Devices {
		if d.Until.After(now) {
			s.health[deviceKey{d.Driver, d.Pool, d.Device}] = health{status: d.Health, message: d.Message, until: d.Until}
			s.restored[d.Driver] = true
		}
	}
}

// keepHealth writes what is known of devices that pods use, if it is other than what was written last.
func (s *Set) keepHealth() {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	s.mu.Lock()
	k := keptHealth{Boot: s.config.Boot}
	for _, r := range s.records {
		for driver, p := range r.Drivers {
			for _, d := range p.Devices {
				if h, ok := s.health[deviceKey{driver, d.Pool, d.Name}]; ok {
					k.Devices = append(k.Devices, keptDevice{driver, d.Pool, d.Name, h.status, h.message, h.until})
				}
			}
		}
	}
	s.mu.Unlock()
	slices.SortFunc(k.Devices, func(a, b keptDevice) int {
		return cmp.Or(cmp.Compare(a.Driver, b.Driver), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Device, b.Device))
	})
	k.Devices = slices.CompactFunc(k.Devices, func(a, b keptDevice) bool { return a.Driver == b.Driver && a.Pool == b.Pool && a.Device == b.Device })
	b, err := json.Marshal(k)
	if err != nil || string(b) == s.kept || len(k.Devices) == 0 && s.kept == "" {
		return
	}
	if err := durable.Replace(s.healthPath(), b, 0o600); err != nil {
		s.log.Warn("health of devices is not kept", "err", fmt.Errorf("write %s: %w", s.healthPath(), err))
		return
	}
	s.kept = string(b)
}

// forgetRestored looks after what was kept of drivers that have not come, until ctx ends or nothing of that is left.
func (s *Set) forgetRestored(ctx context.Context) {
	for {
		var next time.Time
		s.mu.Lock()
		names := make([]string, 0, len(s.restored))
		for name := range s.restored {
			names = append(names, name)
		}
		s.mu.Unlock()
		for _, name := range names {
			if d := s.driver(name); d != nil && d.health != nil {
				continue // who listens to it looks after that
			}
			if at := s.expire(name, time.Now()); !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		if next.IsZero() {
			return
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
