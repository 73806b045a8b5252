package pod

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/keyring"
	"github.com/yare-dev/yare/kubelet/probe"
	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/kubelet/users"
	"github.com/yare-dev/yare/kubelet/volume"
)

// Events records API events about pods.
type Events interface {
	// EventAt is about the part of o that fieldPath names; empty is all of it.
	EventAt(o api.Object, fieldPath, type_, reason, message string)
	Annotated(o api.Object, annotations map[string]string, type_, reason, message string)
}

// Groups makes the cgroups of pods.
type Groups interface {
	Ensure(path string, l resources.Limits) error
	Remove(path string) error
}

// Devices gives pods what device plugins offer; devices.Set does.
type Devices interface {
	// Owns reports whether a resource is counted here, and not by the Node.
	Owns(corev1.ResourceName) bool
	// Missing reports whether the pod is to be granted something yet; Allocate grants it, or says what it waits for. An error refuses the pod.
	Missing(*corev1.Pod) bool
	Allocate(context.Context, *corev1.Pod) (wait string, err error)
	// Prepares reports whether Prepare has to be called before each start of the container.
	Prepares(pod types.UID, container string) bool
	Prepare(ctx context.Context, pod types.UID, container string) error
	// Additions returns what a container gets for its devices.
	Additions(*corev1.Pod, *corev1.Container) (*spec.Additions, error)
	Health(pod types.UID, container string) []corev1.ResourceStatus
	// Free takes the pod's devices back.
	Free(types.UID) error
}

// Config is what all workers go by.
type Config struct {
	Node             spec.Node
	RuntimeName      string // prefix of container IDs in statuses
	MaxRestartDelay  time.Duration
	MaxParallelPulls int
	UnsafeSysctls    []string
	// Handlers are the runtime's, with what pods of each can ask for; "" is that of pods without a RuntimeClass.
	Handlers map[string]*runtimeapi.RuntimeHandlerFeatures
	// Users has the ids of pods with a user namespace of their own; nil where no handler makes any.
	Users *users.Ranges
	// HostsFile is the host's /etc/hosts.
	HostsFile string
	// AppArmor says that the kernel can hold pods to profiles.
	AppArmor bool
	// SELinux says that files have contexts, which the runtime is asked to set.
	SELinux bool
}

// Deps is what workers work with.
type Deps struct {
	Client  client.Client
	CRI     *cri.Client
	Events  Events
	Volumes *volume.Volumes
	Groups  Groups
	Devices Devices      // nil: none
	Claims  Claims       // nil: none
	Probes  probe.Runner // Exec is set by New
	// ProbeMetrics counts probes; nil: nobody does.
	ProbeMetrics *probe.Metrics
	// Keyring has the node's credentials for registries; nil for none.
	Keyring *keyring.Keyring
	Log     *slog.Logger
	// Node returns the Node object, nil before it is registered.
	Node func() *corev1.Node
	// HostIPs returns the node's addresses.
	HostIPs func() []string
	// DNS returns what pods are told about names.
	DNS func() spec.DNS
	// Pressure returns the Node's conditions of pressure, ordered; nil: there are never any.
	Pressure func() []corev1.NodeConditionType
}

// Pods are the workers of this node, one for each pod.
type Pods struct {
	config Config
	Deps
	cri       *cri.Client
	log       *slog.Logger
	runner    probe.Runner
	refs      *references
	tokens    *tokens
	bundles   *bundles
	pullSlots chan struct{}

	mu      sync.Mutex
	ctx     context.Context // of all workers, while open
	synced  bool            // all pods of the API are known
	workers map[types.UID]*worker
	statics []*corev1.Pod             // those that are to run
	mirrors map[types.UID]*corev1.Pod // of statics, by their UIDs

	wg sync.WaitGroup
}

// New returns Pods without workers.
func New(c Config, d Deps) *Pods {
	p := &Pods{config: c, Deps: d, cri: d.CRI, log: d.Log, runner: d.Probes, workers: map[types.UID]*worker{}, mirrors: map[types.UID]*corev1.Pod{},
		pullSlots: make(chan struct{}, max(c.MaxParallelPulls, 1)), tokens: newTokens(d.Client)}
	if p.Devices == nil {
		p.Devices = noDevices{}
	}
	if p.Claims == nil {
		p.Claims = noClaims{}
	}
	p.runner.Exec = p.Exec
	p.refs = newReferences(d.Client, p.referenceChanged)
	p.bundles = newBundles(d.Client, p.referenceChanged)
	return p
}

// Open lets workers run until ctx ends. It must be called before Set.
func (p *Pods) Open(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ctx = ctx
	p.refs.open(ctx)
	p.bundles.open(ctx)
}

// Close waits until all workers have ended, after the context of Open did. Containers go on.
func (p *Pods) Close() {
	p.wg.Wait()
	p.refs.close()
	p.bundles.close()
}

// Set tells what the API says of a pod. The pod is shared and read-only. One that says that it is static is not: only who writes files on
// the node makes those, which are spared where others are evicted.
func (p *Pods) Set(pod *corev1.Pod) {
	if isStatic(pod) {
		pod = pod.DeepCopy()
		pod.Annotations[spec.ConfigSourceAnnotation] = "api"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(pod, false)
}

// set gives the pod's worker what its source says, and makes it where there is none. p.mu is held.
func (p *Pods) set(pod *corev1.Pod, static bool) {
	w := p.workers[pod.UID]
	if w == nil {
		w = newWorker(p, pod, static)
		p.workers[pod.UID] = w
		p.wg.Go(func() {
			if w.run(p.ctx) {
				p.left(w)
			}
		})
	}
	w.set(pod)
}

// Synced tells that every pod that the API has was given to Set: from now on it is known how much room is taken. Until then
// none of them is admitted or resized.
func (p *Pods) Synced() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.synced {
		return
	}
	p.synced = true
	for _, w := range p.workers {
		w.poke()
	}
}

func (p *Pods) isSynced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.synced
}

// Gone tells that the API has no such pod any more. What runs of it is ended, and takes no room from now on.
func (p *Pods) Gone(uid types.UID) {
	p.mu.Lock()
	w := p.workers[uid]
	if w != nil {
		w.setGone()
	}
	p.mu.Unlock()
	if w != nil {
		p.wakeDeferred()
	}
}

// GoneBut tells that the API has no other pods than those.
func (p *Pods) GoneBut(those map[types.UID]bool) {
	p.mu.Lock()
	var gone []types.UID
	for uid, w := range p.workers {
		if !w.static && !those[uid] {
			gone = append(gone, uid)
		}
	}
	p.mu.Unlock()
	for _, uid := range gone {
		p.Gone(uid)
	}
}

// Wake makes the pod's worker look again.
func (p *Pods) Wake(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workers[uid]; w != nil {
		w.poke()
	}
}

// referenceChanged wakes a pod at once whose ConfigMap, Secret or the like has changed, although it may be waiting after a failure.
func (p *Pods) referenceChanged(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workers[uid]; w != nil {
		w.refresh()
	}
}

// RefreshAll makes all workers look again at once, also those that wait after a failure: what they wait for may be there now.
func (p *Pods) RefreshAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		w.refresh()
	}
}

// WakeAll makes all workers look again.
func (p *Pods) WakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		w.poke()
	}
}

// All returns the pods as they are known here, with the status that was computed last, ordered by namespace and name.
func (p *Pods) All() []*corev1.Pod {
	p.mu.Lock()
	ws := slices.Collect(maps.Values(p.workers))
	p.mu.Unlock()
	var out []*corev1.Pod
	for _, w := range ws {
		out = append(out, w.current())
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int {
		return api.KeyOf(a).Compare(api.KeyOf(b))
	})
	return out
}

// Find returns the pod of that name, nil where there is none. Of several, one that is not being deleted.
func (p *Pods) Find(namespace, name string) *corev1.Pod {
	var found *corev1.Pod
	for _, pod := range p.All() {
		if pod.Namespace == namespace && pod.Name == name && (found == nil || pod.DeletionTimestamp == nil) {
			found = pod
		}
	}
	return found
}

// Has reports whether there is a worker for the pod.
func (p *Pods) Has(uid types.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workers[uid] != nil
}

// admit decides about a pod, one at a time, so that two cannot be given the same room.
func (p *Pods) admit(pod *corev1.Pod) *Condition {
	p.mu.Lock()
	defer p.mu.Unlock()
	var refused *Condition
	if p.Pressure != nil {
		refused = AdmitUnderPressure(pod, p.Pressure())
	}
	if refused == nil && !p.config.AppArmor {
		refused = admitWithoutAppArmor(pod)
	}
	if refused == nil {
		refused = Admit(pod, p.Node(), p.others(pod.UID), p.config.UnsafeSysctls, p.Devices.Owns)
	}
	if refused == nil {
		p.workers[pod.UID].noteAdmitted(allocationOf(pod))
	}
	return refused
}

// others returns the pods that take room, but for the one of the UID. p.mu is held.
func (p *Pods) others(but types.UID) (pods []*corev1.Pod) {
	for uid, w := range p.workers {
		if uid != but && w.takesRoom() {
			pods = append(pods, w.current())
		}
	}
	return pods
}

// left removes a worker that has done its work. A static pod may have waited for that.
func (p *Pods) left(w *worker) {
	p.refs.set(w.uid, nil)
	p.tokens.forget(w.uid)
	p.bundles.forget(w.uid)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.workers, w.uid)
	if w.static {
		p.startStatics()
	}
}
