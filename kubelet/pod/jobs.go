package pod

import (
	"context"
	"sync"
)

// jobs are what a worker has running beside it. Only the worker's goroutine calls its methods.
type jobs struct {
	wake func() // called when a job ends

	mu  sync.Mutex
	all map[string]*job

	wg sync.WaitGroup
}

type job struct {
	cancel context.CancelFunc
	done   bool
	err    error
}

func newJobs(wake func()) *jobs { return &jobs{wake: wake, all: map[string]*job{}} }

// do starts f as the job of that key, unless there is one, and reports whether it has ended and how. The outcome stays
// until forget.
func (j *jobs) do(ctx context.Context, key string, f func(context.Context) error) (done bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if have := j.all[key]; have != nil {
		return have.done, have.err
	}
	ctx, cancel := context.WithCancel(ctx)
	this := &job{cancel: cancel}
	j.all[key] = this
	j.wg.Go(func() {
		defer cancel()
		err := f(ctx)
		j.mu.Lock()
		this.done, this.err = true, err
		j.mu.Unlock()
		j.wake()
	})
	return false, nil
}

// state reports whether there is a job of that key and whether it has ended.
func (j *jobs) state(key string) (exists, done bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	have := j.all[key]
	if have == nil {
		return false, false, nil
	}
	return true, have.done, have.err
}

// forget cancels the job and lets do start it anew.
func (j *jobs) forget(key string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if have := j.all[key]; have != nil {
		have.cancel()
		delete(j.all, key)
	}
}

// forgetIf forgets all jobs of whose keys f says so.
func (j *jobs) forgetIf(f func(key string) bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for key, have := range j.all {
		if f(key) {
			have.cancel()
			delete(j.all, key)
		}
	}
}

// stop cancels the job and reports whether it has ended, or there is none; who waits is woken when it does.
func (j *jobs) stop(key string) (ended bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	have := j.all[key]
	if have == nil || have.done {
		return true
	}
	have.cancel()
	return false
}

// close cancels all jobs and waits for them.
func (j *jobs) close() {
	j.mu.Lock()
	for _, have := range j.all {
		have.cancel()
	}
	j.mu.Unlock()
	j.wg.Wait()
}
