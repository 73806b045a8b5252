package campaign_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestKilledAtEachCall kills the server before each of its system calls that change anything: first while it starts and
// adopts, then while a client makes, uses and removes pods.
func TestKilledAtEachCall(t *testing.T) {
	c := &campaign{server: newServer(t)}
	p := &pod{s: c.server, name: "elder", boxes: []*box{until("a", 11), until("b", 12)}}
	must(t, p.run(t.Context()))
	for _, b := range p.boxes {
		must(t, errors.Join(p.create(t.Context(), b), p.start(t.Context(), b)))
	}
	c.elders = []*pod{p}
	k := &client{s: c.server, done: &c.done}
	c.clients = []*client{k}
	begin, killed := time.Now(), map[string]int{}
	for n := *firstCall; n <= *lastCall && !t.Failed(); n += *callStride {
		c.kill()
		before, calls := c.liveUntil(k, n)
		killed[before]++
		if before == "" {
			t.Errorf("the server was not killed at call %d: it made %d", n, calls)
		}
		c.start()
		c.verify()
		if t.Failed() {
			t.Logf("it was killed before call %d, %s, in step %d of the client", n, before, k.at)
		}
	}
	t.Logf("killed before %v in %.0f s; %d pods, %d steps", killed, time.Since(begin).Seconds(), k.made, c.done.Load())
	must(t, p.remove(t.Context()))
	for k.pod != nil && k.at < len(k.steps) && !t.Failed() {
		must(t, k.steps[k.at](t.Context()))
		k.at++
	}
}

// liveUntil starts a server and lets a client work until it is killed before its nth call.
func (c *campaign) liveUntil(k *client, n int) (before string, calls int) {
	c.Helper()
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(c, err)
	defer log.Close()
	trace, err := startTraced(n, c.line(), log)
	must(c, err)
	for answers := false; !answers; {
		select {
		case <-trace.ended:
			must(c, trace.err)
			return trace.before, trace.calls
		case <-time.After(time.Millisecond):
			answers = c.dial()
		}
	}
	if err := k.work(c.Context()); !gone(err) {
		c.Errorf("call %d: %v", n, err)
	}
	<-trace.ended
	must(c, trace.err)
	c.conn.Close()
	return trace.before, trace.calls
}
