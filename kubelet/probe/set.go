package probe

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Target is a running container of the pod.
type Target struct {
	Subject
	Since time.Time // when it was started
	// Adopted says that it ran before this kubelet did: it is as Ready and Started as it was, until a probe says otherwise.
	Adopted, Ready, Started bool
}

// Health is what the probes of a container have found.
type Health struct {
	Ready   bool
	Started bool
	Unwell  string // "liveness" or "startup" when that probe gave up, else empty
}

// Set watches the containers of one pod.
type Set struct {
	runner Runner
	// changed is told that a Health has changed.
	changed func()
	// failed is told of each failure: which probe of which container, and what it said.
	failed func(c *corev1.Container, kind, text string)
	counts *Counts

	mu      sync.Mutex
	watched map[string]*watched // by container ID
	wg      sync.WaitGroup
}

type watched struct {
	target  Target
	health  Health
	started chan struct{} // closed when Health.Started becomes true
	cancel  context.CancelFunc
	harsh   context.CancelFunc // ends liveness and startup probes only
}

// NewSet returns a Set that runs nothing yet. Its probes are counted in counts, which may be nil, until Close or until an ending pod has
// nothing left to probe.
func NewSet(r Runner, counts *Counts, changed func(), failed func(c *corev1.Container, kind, text string)) *Set {
	return &Set{runner: r, counts: counts, changed: changed, failed: failed, watched: map[string]*watched{}}
}

// Sync watches exactly the targets, until ctx ends. When the pod is ending, only readiness goes on.
func (s *Set) Sync(ctx context.Context, targets []Target, ending bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := make(map[string]bool, len(targets))
	for _, t := range targets {
		keep[t.ID] = true
		w := s.watched[t.ID]
		if w == nil && !ending {
			w = s.watch(ctx, t)
		}
		if w != nil && ending {
			w.harsh()
		}
	}
	for id, w := range s.watched {
		if !keep[id] {
			w.cancel()
			delete(s.watched, id)
		}
	}
	if ending && len(targets) == 0 {
		s.counts.drop()
	}
}

// Health returns what is known of a container. One that has no probes, or is not watched, is as well as can be.
func (s *Set) Health(id string) (Health, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.watched[id]
	if w == nil {
		return Health{}, false
	}
	return w.health, true
}

// Close ends all probes and waits for them.
func (s *Set) Close() {
	s.mu.Lock()
	for id, w := range s.watched {
		w.cancel()
		delete(s.watched, id)
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.counts.drop()
}

// watch starts the probes of a container. Preconditions: s.mu is held.
func (s *Set) watch(ctx context.Context, t Target) *watched {
	ctx, cancel := context.WithCancel(ctx)
	harsh, endHarsh := context.WithCancel(ctx)
	c := t.Container
	w := &watched{target: t, started: make(chan struct{}), cancel: cancel, harsh: endHarsh}
	w.health = Health{Ready: c.ReadinessProbe == nil || t.Adopted && t.Ready, Started: c.StartupProbe == nil || t.Adopted && t.Started}
	if w.health.Started {
		close(w.started)
	} else {
		s.wg.Go(func() { s.loop(harsh, w, c.StartupProbe, "Startup") })
	}
	if c.LivenessProbe != nil {
		s.wg.Go(func() { s.loop(harsh, w, c.LivenessProbe, "Liveness") })
	}
	if c.ReadinessProbe != nil {
		s.wg.Go(func() { s.loop(ctx, w, c.ReadinessProbe, "Readiness") })
	}
	s.watched[t.ID] = w
	return w
}

// loop is one probe's life.
func (s *Set) loop(ctx context.Context, w *watched, p *corev1.Probe, kind string) {
	if kind != "Startup" {
		select {
		case <-w.started:
		case <-ctx.Done():
			return
		}
	}
	timer := time.NewTimer(max(0, time.Until(w.target.Since.Add(seconds(p.InitialDelaySeconds, 0)))))
	defer timer.Stop()
	var row int32
	last := false
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		timer.Reset(seconds(p.PeriodSeconds, 10))
		begin := time.Now()
		ok, text, err := s.runner.Run(ctx, p.ProbeHandler, seconds(p.TimeoutSeconds, 1), w.target.Subject)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.failed(w.target.Container, kind, "errored: "+err.Error())
			continue // no verdict
		}
		s.counts.observe(kind, w.target.Container.Name, ok, time.Since(begin))
		if ok != last {
			last, row = ok, 0
		}
		row++
		if !ok {
			s.failed(w.target.Container, kind, "failed: "+text)
		}
		if ok && row < atLeast(p.SuccessThreshold, 1) || !ok && row < atLeast(p.FailureThreshold, 3) {
			continue
		}
		if s.verdict(w, kind, ok) {
			return
		}
	}
}

// verdict notes an outcome that counts and reports whether the probe has done its work.
func (s *Set) verdict(w *watched, kind string, ok bool) (done bool) {
	s.mu.Lock()
	before := w.health
	switch {
	case kind == "Readiness":
		w.health.Ready = ok
	case kind == "Startup" && ok:
		w.health.Started, done = true, true
		close(w.started)
	case kind == "Startup":
		w.health.Unwell, done = "startup", true
	case !ok:
		w.health.Unwell, done = "liveness", true
	}
	changed := w.health != before
	s.mu.Unlock()
	if changed {
		s.changed()
	}
	return done
}

func seconds(n, otherwise int32) time.Duration {
	if n <= 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

func atLeast(n, otherwise int32) int32 {
	if n <= 0 {
		return otherwise
	}
	return n
}
