// Package storetest is what every store.Backend has to pass: etcd's semantics, checked step by step and against a model.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// Backend runs the suite. New returns an empty Backend that lives as long as the test; a TTL of one second must pass in
// not much more than that.
func Backend(t *testing.T, fresh func(t *testing.T) store.Backend) {
	for name, f := range map[string]func(*testing.T, store.Backend){
		"put":     testPut,
		"delete":  testDelete,
		"range":   testRange,
		"watch":   testWatch,
		"compact": testCompact,
		"ttl":     testTTL,
		"race":    testRace,
		"model":   testModel,
		"fence":   testFence,
		"other":   testOvertaken,
	} {
		t.Run(name, func(t *testing.T) { f(t, fresh(t)) })
	}
}

func put(t *testing.T, b store.Backend, key, value string, want api.Revision) api.Revision {
	t.Helper()
	rev, err := b.Put(t.Context(), key, []byte(value), want, 0)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return rev
}

func isErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s: got error %v, want %v", what, got, want)
	}
}

func testPut(t *testing.T, b store.Backend) {
	ctx := t.Context()
	r0, err := b.Revision(ctx)
	if err != nil || r0 == 0 {
		t.Fatalf("revision of an empty database: %d, %v", r0, err)
	}
	r1 := put(t, b, "/a", "1", 0)
	if r1 != r0+1 {
		t.Errorf("first put is revision %d after %d", r1, r0)
	}
	at, err := b.Put(ctx, "/a", []byte("2"), 0, 0)
	isErr(t, "create what exists", err, store.ErrConflict)
	if at != r1 {
		t.Errorf("a conflict of revision %d is found at %d", r1, at)
	}
	_, err = b.Put(ctx, "/a", []byte("2"), r1+7, 0)
	isErr(t, "put at a wrong revision", err, store.ErrConflict)
	_, err = b.Put(ctx, "/b", []byte("2"), r1, 0)
	isErr(t, "update what does not exist", err, store.ErrConflict)
	r2 := put(t, b, "/a", "2", r1)
	kvs, _, rev, err := b.Range(ctx, "/", "0", 0, 0)
	want := []store.KV{{Key: "/a", Value: []byte("2"), Created: r1, Modified: r2}}
	if d := cmp.Diff(want, kvs); d != "" || err != nil || rev != r2 {
		t.Errorf("revision %d, %v, %s", rev, err, d)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := b.Put(ended, "/c", nil, 0, 0); err == nil {
		t.Error("put with an ended context succeeds")
	}
}

func testDelete(t *testing.T, b store.Backend) {
	ctx := t.Context()
	_, err := b.Delete(ctx, "/a", 1)
	isErr(t, "delete what does not exist", err, store.ErrNotFound)
	r1 := put(t, b, "/a", "1", 0)
	at, err := b.Delete(ctx, "/a", r1+1)
	isErr(t, "delete at a wrong revision", err, store.ErrConflict)
	if at != r1 {
		t.Errorf("a conflict of revision %d is found at %d", r1, at)
	}
	r2, err := b.Delete(ctx, "/a", r1)
	if err != nil || r2 != r1+1 {
		t.Errorf("delete: %d, %v", r2, err)
	}
	r3 := put(t, b, "/a", "2", 0)
	kvs, _, _, err := b.Range(ctx, "/a", "/b", 0, 0)
	if err != nil || len(kvs) != 1 || kvs[0].Created != r3 {
		t.Errorf("created again: %v, %v", kvs, err)
	}
}

func testRange(t *testing.T, b store.Backend) {
	ctx := t.Context()
	var at api.Revision
	for i := range 10 {
		at = put(t, b, fmt.Sprintf("/k/%d", i), "x", 0)
	}
	put(t, b, "/l", "x", 0)
	put(t, b, "/k/10", "x", 0)
	kvs, more, rev, err := b.Range(ctx, "/k/", "/k0", 4, at)
	if len(kvs) != 4 || !more || rev != at || err != nil {
		t.Fatalf("first page: %d keys, more %v, revision %d, %v", len(kvs), more, rev, err)
	}
	kvs, more, rev, err = b.Range(ctx, kvs[3].Key+"\x00", "/k0", 6, at)
	if len(kvs) != 6 || more || rev != at || err != nil {
		t.Fatalf("last page: %d keys, more %v, revision %d, %v", len(kvs), more, rev, err)
	}
	_, _, _, err = b.Range(ctx, "/", "0", 0, at+100)
	isErr(t, "range in the future", err, store.ErrFuture)
}

// collector gathers what a watch emits.
type collector struct {
	mu   sync.Mutex
	got  []store.Change
	last api.Revision
	bad  error
	more chan struct{}
}

func watch(t *testing.T, b store.Backend, prefix string, from api.Revision) *collector {
	c := &collector{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Watch(ctx, prefix, from, c.emit)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

func (c *collector) emit(rev api.Revision, list []store.Change) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rev <= c.last {
		c.bad = fmt.Errorf("revision %d after %d", rev, c.last)
	}
	for _, ch := range list {
		if ch.Modified != rev {
			c.bad = fmt.Errorf("change of revision %d told as %d", ch.Modified, rev)
		}
	}
	c.last = rev
	c.got = append(c.got, list...)
	select {
	case c.more <- struct{}{}:
	default:
	}
	return nil
}

// until returns the changes up to revision rev.
func (c *collector) until(t *testing.T, rev api.Revision) []store.Change {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		c.mu.Lock()
		got, last, bad := c.got, c.last, c.bad
		c.mu.Unlock()
		if bad != nil {
			t.Fatal(bad)
		}
		if last >= rev {
			return got
		}
		select {
		case <-c.more:
		case <-timeout:
			t.Fatalf("watch is at revision %d, want %d", last, rev)
		}
	}
}

func testWatch(t *testing.T, b store.Backend) {
	ctx := t.Context()
	r1 := put(t, b, "/a/1", "x", 0)
	live := watch(t, b, "/a/", r1)
	r2 := put(t, b, "/a/1", "y", r1)
	put(t, b, "/b/1", "z", 0)
	r4, err := b.Delete(ctx, "/a/1", r2)
	if err != nil {
		t.Fatal(err)
	}
	r5 := put(t, b, "/a/2", "", 0)
	want := []store.Change{
		{KV: store.KV{Key: "/a/1", Value: []byte("y"), Created: r1, Modified: r2}},
		{KV: store.KV{Key: "/a/1", Modified: r4}},
		{KV: store.KV{Key: "/a/2", Value: []byte{}, Created: r5, Modified: r5}},
	}
	if d := cmp.Diff(want, live.until(t, r5)); d != "" {
		t.Error("live:", d)
	}
	if d := cmp.Diff(want, watch(t, b, "/a/", r1).until(t, r5)); d != "" {
		t.Error("from the past:", d)
	}
	if got := watch(t, b, "", r1).until(t, r5); len(got) != 4 {
		t.Errorf("%d changes of all keys, want 4", len(got))
	}
	stop := errors.New("enough")
	err = b.Watch(ctx, "/a/", r1, func(api.Revision, []store.Change) error { return stop })
	isErr(t, "emit fails", err, stop)
}

func testCompact(t *testing.T, b store.Backend) {
	ctx := t.Context()
	r1 := put(t, b, "/a", "1", 0)
	r2 := put(t, b, "/a", "2", r1)
	r3 := put(t, b, "/a", "3", r2)
	r4 := put(t, b, "/b", "4", 0)
	if err := b.Compact(ctx, r3); err != nil {
		t.Fatal(err)
	}
	isErr(t, "compact again", b.Compact(ctx, r3), store.ErrCompacted)
	isErr(t, "compact the future", b.Compact(ctx, r4+10), store.ErrFuture)
	_, _, _, err := b.Range(ctx, "/", "0", 0, r2)
	isErr(t, "range before", err, store.ErrCompacted)
	kvs, _, _, err := b.Range(ctx, "/", "0", 0, r3)
	if len(kvs) != 1 || string(kvs[0].Value) != "3" || err != nil {
		t.Errorf("range at the compacted revision: %v, %v", kvs, err)
	}
	none := func(api.Revision, []store.Change) error { return nil }
	isErr(t, "watch from before", b.Watch(ctx, "/", r1, none), store.ErrCompacted)
	if got := watch(t, b, "/", r2).until(t, r4); len(got) != 2 {
		t.Errorf("watch from the compacted revision tells %v", got)
	}
}

func testTTL(t *testing.T, b store.Backend) {
	ctx := t.Context()
	seen := watch(t, b, "/", 1)
	r1, err := b.Put(ctx, "/gone", []byte("1"), 0, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := b.Put(ctx, "/kept", []byte("1"), 0, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	r3 := put(t, b, "/kept", "2", kept)
	got := seen.until(t, r3+1)
	if last := got[len(got)-1]; last.Key != "/gone" || last.Value != nil || r1 >= last.Modified {
		t.Errorf("last change is %v", last)
	}
	kvs, _, _, err := b.Range(ctx, "/", "0", 0, 0)
	if len(kvs) != 1 || kvs[0].Key != "/kept" || err != nil {
		t.Errorf("left are %v, %v", kvs, err)
	}
}

// Of many that write a key at the same revision one succeeds.
func testRace(t *testing.T, b store.Backend) {
	const writers, rounds = 8, 25
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := map[api.Revision]int{}
	for w := range writers {
		wg.Go(func() {
			want := api.Revision(0)
			for range rounds {
				rev, err := b.Put(t.Context(), "/race", fmt.Appendf(nil, "%d", w), want, 0)
				switch {
				case err == nil:
					mu.Lock()
					won[want]++
					mu.Unlock()
					want = rev
					continue
				case !errors.Is(err, store.ErrConflict):
					t.Error(err)
					return
				}
				kvs, _, _, err := b.Range(t.Context(), "/race", "/race\x00", 0, 0)
				if err != nil || len(kvs) != 1 {
					t.Error(kvs, err)
					return
				}
				want = kvs[0].Modified
			}
		})
	}
	wg.Wait()
	for rev, n := range won {
		if n != 1 {
			t.Errorf("%d writers replaced revision %d", n, rev)
		}
	}
}

// model is the database as a list of all its states.
type model struct {
	states map[api.Revision]map[string]store.KV
	now    map[string]store.KV
	rev    api.Revision
	log    []store.Change
}

func (m *model) commit(rev api.Revision, c store.Change) {
	next := make(map[string]store.KV, len(m.now)+1)
	for k, v := range m.now {
		next[k] = v
	}
	if c.Value == nil {
		delete(next, c.Key)
	} else {
		next[c.Key] = c.KV
	}
	m.now, m.rev, m.states[rev] = next, rev, next
	m.log = append(m.log, c)
}

func (m *model) list(rev api.Revision) []store.KV {
	var kvs []store.KV
	for _, kv := range m.states[rev] {
		kvs = append(kvs, kv)
	}
	sort.Slice(kvs, func(i, j int) bool { return kvs[i].Key < kvs[j].Key })
	return kvs
}

func testModel(t *testing.T, b store.Backend) {
	ctx := t.Context()
	seed := uint64(20260101)
	rnd := rand.New(rand.NewPCG(seed, 1))
	start, err := b.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := &model{states: map[api.Revision]map[string]store.KV{start: {}}, rev: start}
	seen := watch(t, b, "/m/", start)
	for i := range 400 {
		key := fmt.Sprintf("/m/%d", rnd.IntN(12))
		was := m.now[key]
		want := was.Modified
		if rnd.IntN(4) == 0 {
			want += api.Revision(rnd.IntN(3)) // often wrong
		}
		if rnd.IntN(3) == 0 {
			m.delete(t, b, key, was, want)
			continue
		}
		value := fmt.Appendf(nil, "%d", i)
		rev, err := b.Put(ctx, key, value, want, 0)
		if want != was.Modified {
			isErr(t, "put", err, store.ErrConflict)
			continue
		}
		if err != nil || rev != m.rev+1 {
			t.Fatalf("step %d: put is revision %d after %d: %v", i, rev, m.rev, err)
		}
		kv := store.KV{Key: key, Value: value, Created: was.Created, Modified: rev}
		if want == 0 {
			kv.Created = rev
		}
		m.commit(rev, store.Change{KV: kv})
	}
	for rev := range m.states {
		kvs, _, at, err := b.Range(ctx, "/m/", "/m0", 0, rev)
		if d := cmp.Diff(m.list(rev), kvs); d != "" || err != nil || at != rev {
			t.Fatalf("at revision %d (%d): %v %s", rev, at, err, d)
		}
	}
	if d := cmp.Diff(m.log, seen.until(t, m.rev)); d != "" {
		t.Error("watch:", d)
	}
}

func (m *model) delete(t *testing.T, b store.Backend, key string, was store.KV, want api.Revision) {
	t.Helper()
	rev, err := b.Delete(t.Context(), key, want)
	switch {
	case was.Modified == 0:
		isErr(t, "delete", err, store.ErrNotFound)
	case want != was.Modified:
		isErr(t, "delete", err, store.ErrConflict)
	case err != nil || rev != m.rev+1:
		t.Fatalf("delete is revision %d after %d: %v", rev, m.rev, err)
	default:
		m.commit(rev, store.Change{KV: store.KV{Key: key, Modified: rev}})
	}
}

// storeOf is a Store over b that takes no part in what is tested: it makes the contexts.
func storeOf(b store.Backend) *store.Store { return store.New(b, nil, store.Options{}) }

// testFence has somebody else take the lead while the first still writes.
func testFence(t *testing.T, b store.Backend) {
	one, two := storeOf(b).NewFence("lead"), storeOf(b).NewFence("lead")
	first, second := one.Context(t.Context()), two.Context(t.Context())
	write := func(ctx context.Context, key string, want api.Revision) (api.Revision, error) {
		return b.Put(ctx, key, []byte("x"), want, 0)
	}
	at, err := write(first, "/a", 0)
	isErr(t, "before anybody leads", err, nil)
	take := func(f *store.Fence, name string) error { _, err := f.Take(t.Context(), name); return err }
	late := storeOf(b).NewFence("lead")
	isErr(t, "look before the first", late.Stand(t.Context()), nil)
	isErr(t, "look who leads", one.Stand(t.Context()), nil)
	isErr(t, "take the lead", take(one, "one"), nil)
	isErr(t, "take it late", take(late, "late"), store.ErrConflict)
	isErr(t, "look who leads", late.Stand(t.Context()), nil)
	at, err = write(first, "/a", at)
	isErr(t, "the leader's write", err, nil)
	_, err = write(first, "/a", at+100)
	isErr(t, "the leader's write at a wrong revision", err, store.ErrConflict)
	isErr(t, "look who leads", two.Stand(t.Context()), nil)
	isErr(t, "take the lead away", take(two, "two"), nil)
	isErr(t, "take it late from the next one", take(late, "late"), store.ErrConflict)
	_, err = write(first, "/a", at)
	isErr(t, "a write of who led", err, store.ErrFenced)
	_, err = write(first, "/b", 0)
	isErr(t, "a create of who led", err, store.ErrFenced)
	_, err = b.Delete(first, "/a", at)
	isErr(t, "a deletion of who led", err, store.ErrFenced)
	_, err = b.Delete(second, "/b", 1)
	isErr(t, "a deletion of what is not there", err, store.ErrNotFound)
	_, err = b.Delete(second, "/a", at+100)
	isErr(t, "a deletion at a wrong revision", err, store.ErrConflict)
	_, err = b.Delete(second, "/a", at)
	isErr(t, "the next leader's deletion", err, nil)
	_, err = write(t.Context(), "/a", 0)
	isErr(t, "a write of anybody", err, nil)
}

// testOvertaken has two servers allocate by what each has seen.
func testOvertaken(t *testing.T, b store.Backend) {
	if b.Exclusive() {
		// Nobody else can write: it is asked for, and is nothing.
		if ctx := storeOf(b).Allocated(t.Context(), "things", "one", 1); ctx != t.Context() {
			t.Error("a condition where nobody else writes")
		}
		b = shared{b}
	}
	s := storeOf(b)
	allocate := func(who, key string, since api.Revision) (api.Revision, error) {
		return b.Put(s.Allocated(t.Context(), "things", who, since), key, []byte("x"), 0, 0)
	}
	begin, err := b.Revision(t.Context())
	isErr(t, "revision", err, nil)
	first, err := allocate("one", "/a", begin)
	isErr(t, "the first", err, nil)
	_, err = allocate("one", "/b", begin)
	isErr(t, "its next, decided by the same", err, nil)
	seen, err := allocate("two", "/c", first-1)
	isErr(t, "the other, who has not seen it", err, store.ErrOvertaken)
	if seen < first {
		t.Errorf("overtaken at %d, before %d", seen, first)
	}
	_, err = allocate("two", "/b", seen)
	isErr(t, "of a name that is taken", err, store.ErrConflict)
	second, err := allocate("two", "/c", seen)
	isErr(t, "who has seen it", err, nil)
	_, err = allocate("three", "/d", second-1)
	isErr(t, "a third, who has not seen the second", err, store.ErrOvertaken)
	_, err = allocate("one", "/d", first)
	isErr(t, "the first again, who has not either", err, store.ErrOvertaken)
	_, err = allocate("three", "/d", second)
	isErr(t, "the third", err, nil)
}

// shared is a Backend of several writers.
type shared struct{ store.Backend }

func (shared) Exclusive() bool { return false }
