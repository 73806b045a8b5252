package volume

import "sync"

// locks are as many mutexes as there are keys in use. The zero value is ready.
type locks struct {
	mu  sync.Mutex
	all map[any]*lock
}

type lock struct {
	sync.Mutex
	users int // who hold it or wait for it
}

// lock waits until nobody else has the key.
func (l *locks) lock(key any) (unlock func()) {
	l.mu.Lock()
	one := l.all[key]
	if one == nil {
		if l.all == nil {
			l.all = map[any]*lock{}
		}
		one = &lock{}
		l.all[key] = one
	}
	one.users++
	l.mu.Unlock()
	one.Lock()
	return func() {
		one.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(l.all, key)
		}
	}
}
