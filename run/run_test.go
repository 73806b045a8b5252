package run

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal notes what happens in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(s string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, s)
}

func (j *journal) component(name string, warmUp time.Duration, end <-chan error) Component {
	return Func(name, func(ctx context.Context, ready func()) error {
		j.add("start " + name)
		defer j.add("stop " + name)
		select {
		case <-time.After(warmUp):
			j.add("ready " + name)
			ready()
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-end:
			return err
		}
	})
}

func TestOrder(t *testing.T) {
	tests := []struct {
		name  string
		group func(string, ...Component) Component
		want  []string
	}{
		{"in order", InOrder, []string{"start a", "ready a", "start b", "ready b", "group ready", "stop b", "stop a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() {
					done <- tt.group("g", j.component("a", 2*time.Second, nil), j.component("b", time.Second, nil)).
						Run(ctx, func() { j.add("group ready") })
				}()
				time.Sleep(time.Minute)
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if !slices.Equal(j.lines, tt.want) {
					t.Errorf("got %q", j.lines)
				}
			})
		})
	}
}

func TestTogetherWaitsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		var ready time.Duration
		done := make(chan error)
		go func() {
			done <- Together("g", j.component("a", 2*time.Second, nil), j.component("b", 3*time.Second, nil)).
				Run(ctx, func() { ready = time.Since(begin) })
		}()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil || ready != 3*time.Second {
			t.Error(err, ready)
		}
	})
}

func TestFailureEndsAll(t *testing.T) {
	boom := errors.New("boom")
	for _, group := range []func(string, ...Component) Component{InOrder, Together} {
		for _, err := range []error{boom, nil} {
			synctest.Test(t, func(t *testing.T) {
				var j journal
				end := make(chan error, 1)
				end <- err
				got := group("g", j.component("a", 0, nil), j.component("b", 0, end)).Run(t.Context(), func() {})
				want := err
				if want == nil {
					want = ErrStopped
				}
				if !errors.Is(got, want) || got.Error() != "b: "+want.Error() {
					t.Errorf("got %v", got)
				}
				if !slices.Contains(j.lines, "stop a") {
					t.Errorf("a was left running: %q", j.lines)
				}
			})
		}
	}
}

type fakeLease struct{ lose chan struct{} }

func (l fakeLease) Hold(ctx context.Context) (context.Context, func(), error) {
	held, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-l.lose:
			cancel(errors.New("another holder"))
		case <-ctx.Done():
		}
	}()
	return held, func() {}, nil
}

func TestLeading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		lose := make(chan struct{})
		time.AfterFunc(time.Minute, func() { close(lose) })
		err := Leading(fakeLease{lose}, j.component("c", 0, nil)).Run(t.Context(), func() { j.add("ready") })
		if err == nil || err.Error() != "lease lost: another holder" {
			t.Error(err)
		}
		if want := []string{"ready", "start c", "ready c", "stop c"}; !slices.Equal(j.lines, want) {
			t.Errorf("got %q", j.lines)
		}
	})
}

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j journal
		h := NewHealth()
		c := h.Watch(j.component("a", time.Second, nil))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx, func() {}) }()
		synctest.Wait()
		if h.Checks()[0].Ready {
			t.Error("ready too early")
		}
		time.Sleep(2 * time.Second)
		if want := []Check{{Name: "a", Ready: true}}; !slices.Equal(h.Checks(), want) {
			t.Error(h.Checks())
		}
		cancel()
		<-done
		if h.Checks()[0].Ready {
			t.Error("ready after its end")
		}
	})
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if err := Pause(t.Context(), time.Minute); err != nil || time.Since(begin) != time.Minute {
			t.Errorf("error %v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := Pause(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the context's", err)
		}
	})
}
