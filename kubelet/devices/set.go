package devices

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/linux/socket"
)

const (
	callLimit    = 10 * time.Second
	prepareLimit = pluginapi.KubeletPreStartContainerRPCTimeoutInSecs * time.Second
	// grace is how long a resource is kept whose plugin has gone; upstream's.
	grace = 5 * time.Minute
	// listPause is how soon another list of a plugin is taken up after one: each may have the Node and pods written.
	listPause = 50 * time.Millisecond
	// maxID bounds the names of devices, which go into statuses and files. The API says 63; some plugins use more.
	maxID = 1024
)

// Config is what a Set stands on.
type Config struct {
	Root string // the kubelet's folder
	Boot string // the host's boot ID
	// Closed is for a Set that no plugin comes to: pods keep what they were granted before, and nobody is granted anything.
	Closed bool
	// Dial connects to a plugin's socket; nil: a unix socket at the path.
	Dial func(ctx context.Context, path string) (net.Conn, error)
	// Changed is called when the Node should show other numbers; Came when there are devices where there were none, so that pods that wait
	// look again; Wake when the health of a pod's devices is another.
	Changed, Came func()
	Wake          func(types.UID)
	// Pods returns the node's pods, for the pod resources API.
	Pods func() []*corev1.Pod
	// Claims returns what a container has of its pod's ResourceClaims, for the same; nil: nothing.
	Claims func(pod *corev1.Pod, container string) []*podresourcesapi.DynamicResource
	Log    *slog.Logger
}

// Set are the devices of one node.
type Set struct {
	config Config
	log    *slog.Logger
	wg     sync.WaitGroup // plugins

	writing sync.Mutex // one writes the files at a time, in the order of what it writes

	mu      sync.Mutex
	ctx     context.Context // of all plugins, while open
	count   uint64          // plugins so far: the later one replaces the earlier
	pending map[string]*plugin
	stocks  map[string]*stock                          // by resource
	dropped map[string]bool                            // resources that were there: the Node shows none of them
	used    map[string]map[string]types.UID            // whose a device is, by resource and ID; also while the plugin is being asked
	grants  map[types.UID]map[string]map[string]*grant // by pod, container, resource
	former  map[types.UID]map[string][]string          // what pods had before the host booted, by resource
}

// stock is what the node has of one resource.
type stock struct {
	plugin   *plugin // nil: none is connected
	devices  map[string]*pluginapi.Device
	healthy  []string // sorted; empty without a plugin
	expected bool     // it was known before the kubelet began, and its plugin has not come since
	end      *time.Timer
}

// grant is what one container has of one resource.
type grant struct {
	IDs      []string                             `json:"devices"` // sorted
	NUMA     map[string][]int64                   `json:"numa,omitempty"`
	PreStart bool                                 `json:"preStart,omitempty"`
	Response *pluginapi.ContainerAllocateResponse `json:"-"`
	Encoded  []byte                               `json:"response,omitempty"` // Response in protobuf
}

// New returns a Set that knows nothing. Nothing is touched.
func New(c Config) *Set {
	if c.Dial == nil {
		c.Dial = socket.Dial
	}
	return &Set{config: c, log: c.Log, pending: map[string]*plugin{}, stocks: map[string]*stock{}, dropped: map[string]bool{},
		used: map[string]map[string]types.UID{}, grants: map[types.UID]map[string]map[string]*grant{}, former: map[types.UID]map[string][]string{}}
}

// Dir is the folder of plugins' sockets.
func (s *Set) Dir() string { return filepath.Join(s.config.Root, "device-plugins") }

// Open reads what was granted before. It comes before any pod is looked at; plugins live until ctx ends.
func (s *Set) Open(ctx context.Context) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
	if err := s.load(); err != nil {
		return err
	}
	for name, st := range s.stocks {
		if s.config.Closed { // the file keeps the name, for when it is open again
			delete(s.stocks, name)
			s.dropped[name] = true
			continue
		}
		s.endAfterGrace(name, st)
	}
	return nil
}

// endAfterGrace drops the stock unless a plugin comes before. s.mu is held.
func (s *Set) endAfterGrace(name string, st *stock) {
	st.end = time.AfterFunc(grace, func() { s.drop(name, st) })
}

func (s *Set) drop(name string, st *stock) {
	s.mu.Lock()
	if s.stocks[name] != st || st.plugin != nil || s.ctx.Err() != nil {
		s.mu.Unlock()
		return
	}
	delete(s.stocks, name)
	s.dropped[name] = true
	s.mu.Unlock()
	s.log.Info("device plugin did not come back: its resource is gone", "resource", name)
	if err := s.saveNames(); err != nil {
		s.log.Warn("names of resources are not saved", "err", err)
	}
	s.config.Changed()
	s.config.Came() // whoever waited for it is refused now
}

// close ends the timers.
func (s *Set) close() {
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stocks {
		if st.end != nil {
			st.end.Stop()
		}
	}
}

// listed takes up what a plugin has. With its first list it replaces the plugin before it; what comes of a plugin that was replaced counts no more.
func (s *Set) listed(p *plugin, list []*pluginapi.Device) (current bool) {
	devices, healthy := take(list, p.log)
	s.mu.Lock()
	st := s.stocks[p.resource]
	if current := st != nil && st.plugin == p; !current {
		newer := func(q *plugin) bool { return q != nil && q.number > p.number }
		if newer(s.pending[p.resource]) || st != nil && newer(st.plugin) {
			s.mu.Unlock()
			return false
		}
	}
	first := st == nil
	if first {
		st = &stock{}
		s.stocks[p.resource] = st
	}
	before := *st
	if st.plugin != p && st.plugin != nil {
		st.plugin.cancel(errReplaced)
	}
	if st.end != nil {
		st.end.Stop()
		st.end = nil
	}
	if s.pending[p.resource] == p {
		delete(s.pending, p.resource)
	}
	delete(s.dropped, p.resource)
	st.plugin, st.expected = p, false
	st.devices, st.healthy = devices, healthy
	var wake []types.UID
	for id, uid := range s.used[p.resource] {
		if healthOf(&before, id) != healthOf(st, id) {
			wake = append(wake, uid)
		}
	}
	s.mu.Unlock()
	if first {
		if err := s.saveNames(); err != nil { // a restarted kubelet will take the resource for one that nobody serves
			s.log.Warn("names of resources are not saved", "err", err)
		}
	}
	if before.plugin != p || len(before.devices) != len(devices) || len(before.healthy) != len(healthy) {
		say := s.log.Debug
		if before.plugin != p {
			say = s.log.Info
		}
		say("device plugin has devices", "resource", p.resource, "all", len(devices), "healthy", len(healthy))
		s.config.Changed()
	}
	if before.plugin == nil {
		s.config.Came()
	}
	s.wake(wake)
	return true
}

// take returns what is usable of a plugin's list.
func take(list []*pluginapi.Device, log *slog.Logger) (devices map[string]*pluginapi.Device, healthy []string) {
	devices = make(map[string]*pluginapi.Device, len(list))
	bad := 0
	for _, d := range list {
		if d.GetID() == "" || len(d.ID) > maxID {
			bad++
			continue
		}
		devices[d.ID] = d
	}
	if bad > 0 {
		log.Warn("device plugin lists devices that cannot be used: names have 1 to 1024 bytes", "count", bad)
	}
	for id, d := range devices {
		if d.Health == pluginapi.Healthy {
			healthy = append(healthy, id)
		}
	}
	slices.Sort(healthy)
	return devices, healthy
}

// lost notes that a plugin has gone. Its devices can be given to nobody from now on.
func (s *Set) lost(p *plugin) {
	s.mu.Lock()
	if s.pending[p.resource] == p {
		delete(s.pending, p.resource)
	}
	st := s.stocks[p.resource]
	if st == nil || st.plugin != p || s.ctx.Err() != nil {
		s.mu.Unlock()
		return
	}
	st.plugin, st.healthy = nil, nil
	s.endAfterGrace(p.resource, st)
	wake := slices.Collect(maps.Values(s.used[p.resource]))
	s.mu.Unlock()
	s.config.Changed()
	s.wake(wake)
}

func (s *Set) wake(pods []types.UID) {
	slices.Sort(pods)
	for _, uid := range slices.Compact(pods) {
		s.config.Wake(uid)
	}
}

// Count is what the Node shows of a resource.
type Count struct {
	Capacity, Allocatable int64
	// Unknown says that the plugin has not come yet: the capacity that the Node shows stays.
	Unknown bool
}

// Counts returns what the Node shows, by resource. Those that are gone are there with zero, as upstream has it: it tells them from those that
// nobody counts.
func (s *Set) Counts() map[corev1.ResourceName]Count {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.stocks)+len(s.dropped) == 0 {
		return nil
	}
	out := make(map[corev1.ResourceName]Count, len(s.stocks)+len(s.dropped))
	for name := range s.dropped {
		out[corev1.ResourceName(name)] = Count{}
	}
	for name, st := range s.stocks {
		out[corev1.ResourceName(name)] = Count{Capacity: int64(len(st.devices)), Allocatable: int64(len(st.healthy)), Unknown: st.expected}
	}
	return out
}

// Owns reports whether the resource is a plugin's, so that it is counted here.
func (s *Set) Owns(name corev1.ResourceName) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.owns(string(name))
}

func (s *Set) owns(name string) bool { return s.stocks[name] != nil || len(s.used[name]) > 0 }

// Health returns how the devices of a container are (KEP-4680), nil where it has none.
func (s *Set) Health(pod types.UID, container string) (out []corev1.ResourceStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, g := range s.grants[pod][container] {
		r := corev1.ResourceStatus{Name: corev1.ResourceName(name)}
		for _, id := range g.IDs {
			r.Resources = append(r.Resources, corev1.ResourceHealth{ResourceID: corev1.ResourceID(id), Health: healthOf(s.stocks[name], id)})
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b corev1.ResourceStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// healthOf is unknown where no plugin is there to tell, or it does not know the device any more.
func healthOf(st *stock, id string) corev1.ResourceHealthStatus {
	if st == nil || st.plugin == nil || st.devices[id] == nil {
		return corev1.ResourceHealthStatusUnknown
	}
	if st.devices[id].Health == pluginapi.Healthy {
		return corev1.ResourceHealthStatusHealthy
	}
	return corev1.ResourceHealthStatusUnhealthy
}

// Holders returns the pods that have devices.
func (s *Set) Holders() []types.UID {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.AppendSeq(slices.Collect(maps.Keys(s.grants)), maps.Keys(s.former))
	slices.Sort(all)
	return slices.Compact(all)
}

// Free takes back what a pod has, of which nothing runs any more.
func (s *Set) Free(pod types.UID) error {
	s.mu.Lock()
	known := s.grants[pod] != nil || s.former[pod] != nil
	s.mu.Unlock()
	if !known {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	granted, former := s.grants[pod], s.former[pod]
	delete(s.grants, pod)
	delete(s.former, pod)
	s.mu.Unlock()
	err := s.saveGrants()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil { // it is tried again; until then the devices are nobody else's
		s.restore(pod, granted, former)
		return err
	}
	s.release(pod)
	return nil
}

func (s *Set) restore(pod types.UID, granted map[string]map[string]*grant, former map[string][]string) {
	if granted != nil {
		s.grants[pod] = granted
	}
	if former != nil {
		s.former[pod] = former
	}
}

// release lets others have the pod's devices. s.mu is held.
func (s *Set) release(pod types.UID) {
	for name, ids := range s.used {
		maps.DeleteFunc(ids, func(_ string, by types.UID) bool { return by == pod })
		if len(ids) == 0 {
			delete(s.used, name)
		}
	}
}

// use notes whose devices are. s.mu is held.
func (s *Set) use(resource string, ids []string, pod types.UID) {
	if s.used[resource] == nil {
		s.used[resource] = map[string]types.UID{}
	}
	for _, id := range ids {
		s.used[resource][id] = pod
	}
}

// extended is the part of a container's limits that plugins may serve, by name. What its pod has a claim for, DRA drivers do.
func extended(pod *corev1.Pod, c *corev1.Container) (names []string) {
	for name, q := range c.Resources.Limits {
		if strings.Contains(string(name), "/") && q.Sign() > 0 && !spec.ByClaim(pod, string(name)) {
			names = append(names, string(name))
		}
	}
	slices.Sort(names)
	return names
}
