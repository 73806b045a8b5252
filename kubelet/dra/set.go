package dra

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/socket"
)

const (
	callLimit = 45 * time.Second
	// grace is how long the ResourceSlices of a driver stay that does not answer; upstream's.
	grace = 30 * time.Second
	// startGrace is how long drivers have to come after the kubelet began, before theirs go. Upstream gives them no time. Here the API server often
	// begins together with the kubelet, and drivers make their ResourceSlices anew only when they have found it again: for some ten seconds, nothing
	// could be allocated.
	startGrace = 5 * time.Second
)

// Config is what a Set stands on.
type Config struct {
	Root   string // the kubelet's folder
	Boot   string // the host's boot ID
	Node   string
	Client client.Client
	// Dial connects to a driver's socket; nil: a unix socket at the path.
	Dial func(ctx context.Context, path string) (net.Conn, error)
	// Came is called when a driver has come, so that pods that wait look again; Wake when the health of a pod's devices is another.
	Came func()
	Wake func(types.UID)
	Log  *slog.Logger
}

// Set are the claims and drivers of one node.
type Set struct {
	config Config
	log    *slog.Logger
	poke   chan struct{} // wipes are others

	mu      sync.Mutex
	records map[types.UID]*record // by claim; what one holds is never changed, but replaced
	busy    map[types.UID]chan struct{}
	drivers map[string][]*driver // by name, the newest last
	wipes   map[string]time.Time // when ResourceSlices go, by driver; "" has all drivers that are not there
	health  map[deviceKey]health
	calls   map[*calling]bool
	ctx     context.Context // of Run, once it runs

	keeping  sync.Mutex      // one writes what is kept of health at a time
	kept     string          // what was written
	restored map[string]bool // drivers of which health was read

	changing sync.Mutex // one changes a record at a time: drivers of one claim answer when they like
}

// record is what is known of one claim, as it is on disk.
type record struct {
	UID       types.UID `json:"uid"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	// Boot is the host's when drivers prepared it.
	Boot string `json:"boot"`
	// Allocation tells one allocation of the claim from another.
	Allocation string              `json:"allocation"`
	Pods       []types.UID         `json:"pods"`
	Drivers    map[string]*portion `json:"drivers"`
}

// portion is one driver's part of a claim.
type portion struct {
	Prepared bool     `json:"prepared"`
	Devices  []device `json:"devices,omitempty"`
}

// device is what a driver says of one.
type device struct {
	Requests []string `json:"requests,omitempty"` // empty: all
	Pool     string   `json:"pool"`
	Name     string   `json:"device"`
	CDI      []string `json:"cdi,omitempty"`
	Share    *string  `json:"share,omitempty"`
}

// New returns a Set that knows nothing. Nothing is touched.
func New(c Config) *Set {
	if c.Dial == nil {
		c.Dial = socket.Dial
	}
	return &Set{config: c, log: c.Log, poke: make(chan struct{}, 1), records: map[types.UID]*record{}, busy: map[types.UID]chan struct{}{},
		drivers: map[string][]*driver{}, wipes: map[string]time.Time{}, health: map[deviceKey]health{}, calls: map[*calling]bool{}, restored: map[string]bool{}}
}

// Holders returns the pods that have claims.
func (s *Set) Holders() []types.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[types.UID]bool{}
	for _, r := range s.records {
		for _, uid := range r.Pods {
			all[uid] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// Holds reports whether the pod has claims that are to be released.
func (s *Set) Holds(pod types.UID) bool { return len(s.held(pod)) > 0 }

// held returns the records of the pod, ordered by claim.
func (s *Set) held(pod types.UID) (out []*record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if slices.Contains(r.Pods, pod) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b *record) int { return strings.Compare(string(a.UID), string(b.UID)) })
	return out
}

// lock waits until nobody else is at work on any of the claims.
func (s *Set) lock(ctx context.Context, claims []types.UID) (unlock func(), err error) {
	for {
		s.mu.Lock()
		var wait chan struct{}
		for _, uid := range claims {
			if c := s.busy[uid]; c != nil {
				wait = c
			}
		}
		if wait == nil {
			mine := make(chan struct{})
			for _, uid := range claims {
				s.busy[uid] = mine
			}
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				for _, uid := range claims {
					delete(s.busy, uid)
				}
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// change replaces the record of a claim by a copy that f has changed, on disk first. The claim is locked.
func (s *Set) change(uid types.UID, f func(*record)) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	next := s.records[uid].clone()
	s.mu.Unlock()
	f(next)
	return s.put(next)
}

func (s *Set) put(r *record) error {
	if err := s.save(r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[r.UID] = r
	return nil
}

func (r *record) clone() *record {
	next := *r
	next.Pods = slices.Clone(r.Pods)
	next.Drivers = make(map[string]*portion, len(r.Drivers))
	for name, p := range r.Drivers {
		copied := *p
		next.Drivers[name] = &copied
	}
	return &next
}

// ready reports whether all drivers have prepared the claim since the host booted.
func (r *record) ready(boot string) bool {
	for _, p := range r.Drivers {
		if !p.Prepared || r.Boot != boot {
			return false
		}
	}
	return true
}

// allocationOf describes an allocation: what was allocated for which request.
func allocationOf(a *resourcev1.AllocationResult) string {
	var parts []string
	for i := range a.Devices.Results {
		d := &a.Devices.Results[i]
		part := d.Request + "=" + d.Driver + "/" + d.Pool + "/" + d.Device
		if d.ShareID != nil {
			part += "/" + string(*d.ShareID)
		}
		parts = append(parts, part)
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}
