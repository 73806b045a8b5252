package devices

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/yare-dev/yare/api"
)

// Missing reports whether a container of the pod is still to be granted something that plugins serve.
func (s *Set) Missing(pod *corev1.Pod) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.stocks)+len(s.used) == 0 {
		return false
	}
	missing := false
	each(pod, func(c *corev1.Container, _ bool) {
		for _, name := range extended(pod, c) {
			missing = missing || s.owns(name) && s.grants[pod.UID][c.Name][name] == nil
		}
	})
	return missing
}

// each calls f with the containers that can have devices, init containers first. passes says that what one has is free when the next starts.
func each(pod *corev1.Pod, f func(c *corev1.Container, passes bool)) {
	for i := range pod.Spec.InitContainers {
		f(&pod.Spec.InitContainers[i], !api.Sidecar(&pod.Spec.InitContainers[i]))
	}
	for i := range pod.Spec.Containers {
		f(&pod.Spec.Containers[i], false)
	}
}

// allocation is one under way, of one pod.
type allocation struct {
	set    *Set
	pod    *corev1.Pod
	grants map[string]map[string]*grant // so far, by container and resource
	reuse  map[string][]string          // left by init containers, by resource, sorted
	taken  map[string][]string          // reserved for it, by resource
	former map[string][]string
}

// Allocate grants the pod's containers what they ask for. It returns what it has to wait for, if it cannot say yet; an error refuses the pod, in
// upstream's words, and nothing is granted. One pod is allocated for at a time.
func (s *Set) Allocate(ctx context.Context, pod *corev1.Pod) (wait string, err error) {
	a := allocation{set: s, pod: pod, grants: map[string]map[string]*grant{}, reuse: map[string][]string{}, taken: map[string][]string{}}
	s.mu.Lock()
	a.former = s.former[pod.UID]
	for container, held := range s.grants[pod.UID] {
		a.grants[container] = maps.Clone(held)
	}
	s.mu.Unlock()
	defer func() {
		if err != nil && s.ends(ctx) { // which is no reason to refuse anybody
			wait, err = "the kubelet ends", nil
		}
		if wait != "" || err != nil {
			a.giveBack()
		}
	}()
	each(pod, func(c *corev1.Container, passes bool) {
		for _, name := range extended(pod, c) {
			if wait == "" && err == nil {
				wait, err = a.container(ctx, c, name)
			}
		}
		a.pass(c.Name, passes)
	})
	if wait != "" || err != nil {
		return wait, err
	}
	return "", a.commit()
}

// ends reports whether plugins are let go because nothing goes on here, or not for who asks.
func (s *Set) ends(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ctx.Err() != nil || s.ctx.Err() != nil
}

// pass notes what later containers may use of the container's.
func (a *allocation) pass(container string, passes bool) {
	for name, g := range a.grants[container] {
		if passes {
			a.reuse[name] = slices.Compact(slices.Sorted(slices.Values(slices.Concat(a.reuse[name], g.IDs))))
			continue
		}
		a.reuse[name] = slices.DeleteFunc(slices.Clone(a.reuse[name]), func(id string) bool { return slices.Contains(g.IDs, id) })
	}
}

// container grants one container what it asks for of one resource.
func (a *allocation) container(ctx context.Context, c *corev1.Container, name string) (wait string, err error) {
	quantity := c.Resources.Limits[corev1.ResourceName(name)]
	want := int(quantity.Value())
	if have := a.grants[c.Name][name]; have != nil {
		if len(have.IDs) != want {
			return "", fmt.Errorf("pod %q container %q changed request for resource %q from %d to %d", a.pod.UID, c.Name, name, len(have.IDs), want)
		}
		return "", nil
	}
	s := a.set
	chosen, p, wait, err := a.reserve(ctx, name, want)
	if p == nil || err != nil {
		return wait, err
	}
	g := &grant{IDs: chosen.ids, NUMA: chosen.numa, PreStart: p.options.GetPreStartRequired()}
	if g.Response, err = p.allocate(ctx, g.IDs); err != nil {
		if s.follows(name, p) {
			return replaced(name), nil
		}
		return "", err
	}
	if g.Encoded, err = proto.Marshal(g.Response); err != nil {
		return "", fmt.Errorf("response of the device plugin of %s: %w", name, err)
	}
	if a.grants[c.Name] == nil {
		a.grants[c.Name] = map[string]*grant{}
	}
	a.grants[c.Name][name] = g
	return "", nil
}

// follows reports whether another plugin serves the resource by now.
func (s *Set) follows(name string, before *plugin) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stocks[name]
	return st != nil && st.plugin != nil && st.plugin != before
}

func replaced(name string) string {
	return fmt.Sprintf("the device plugin of %s was replaced while it was asked", name)
}

type choice struct {
	ids  []string
	numa map[string][]int64
}

// reserve chooses devices and makes them the pod's. Without a plugin in return there is nothing to do, or to wait for something.
func (a *allocation) reserve(ctx context.Context, name string, want int) (c choice, p *plugin, wait string, err error) {
	s := a.set
	s.mu.Lock()
	st := s.stocks[name]
	switch {
	case st == nil && s.owns(name):
		err = fmt.Errorf("cannot allocate unregistered device %s", name)
	case st == nil: // nobody's here: it is counted elsewhere, if at all
	case st.expected:
		wait = fmt.Sprintf("the device plugin of %s, which was registered before, is not yet registered again", name)
	case len(st.healthy) == 0:
		err = fmt.Errorf("no healthy devices present; cannot allocate unhealthy devices %s", name)
	default:
		p = st.plugin
	}
	if p == nil {
		s.mu.Unlock()
		return c, nil, wait, err
	}
	kept, free := a.free(name, st)
	s.mu.Unlock()
	must := kept[:min(len(kept), want)]
	var prefers []string
	if need := want - len(must); need > 0 && len(free) >= need && p.options.GetGetPreferredAllocationAvailable() {
		if prefers, err = p.preferred(ctx, slices.Sorted(slices.Values(slices.Concat(must, free))), must, want); err != nil {
			if s.follows(name, p) {
				return c, nil, replaced(name), nil
			}
			return c, nil, "", err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st = s.stocks[name]; st != nil && st.plugin != nil && st.plugin != p {
		return c, nil, replaced(name), nil
	}
	if st == nil || st.plugin == nil { // since it was asked
		return c, nil, "", fmt.Errorf("no healthy devices present; cannot allocate unhealthy devices %s", name)
	}
	kept, free = a.free(name, st)
	must = kept[:min(len(kept), want)]
	more, ok := choose(want-len(must), free, a.former[name], prefers)
	if !ok {
		return c, nil, "", fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", name, want-len(must), len(free))
	}
	s.use(name, more, a.pod.UID)
	a.taken[name] = append(a.taken[name], more...)
	c.ids = slices.Sorted(slices.Values(slices.Concat(must, more)))
	for _, id := range c.ids {
		if nodes := numaOf(st.devices[id]); len(nodes) > 0 {
			if c.numa == nil {
				c.numa = map[string][]int64{}
			}
			c.numa[id] = nodes
		}
	}
	return c, p, "", nil
}

// free returns the healthy devices that the pod has from an init container, and those that nobody has; also what the pod itself had before
// the boot. s.mu is held.
func (a *allocation) free(name string, st *stock) (kept, free []string) {
	used := a.set.used[name]
	for _, id := range a.reuse[name] {
		if d := st.devices[id]; d != nil && d.Health == pluginapi.Healthy {
			kept = append(kept, id)
		}
	}
	for _, id := range st.healthy {
		by, taken := used[id]
		if !taken || by == a.pod.UID && slices.Contains(a.former[name], id) && !a.has(name, id) {
			free = append(free, id)
		}
	}
	return kept, free
}

// has reports whether a container of the pod was given the device by now.
func (a *allocation) has(name, id string) bool {
	return slices.Contains(a.taken[name], id)
}

// choose returns n of the free devices: those that the pod had, then those that the plugin prefers, then the first.
func choose(n int, free, former, prefers []string) (chosen []string, ok bool) {
	if n > len(free) {
		return nil, false
	}
	if n == 0 {
		return nil, true
	}
	in := make(map[string]bool, len(former)+len(prefers))
	for _, list := range [][]string{former, prefers, free} {
		for _, id := range list {
			if len(chosen) == n {
				return chosen, true
			}
			if _, isFree := slices.BinarySearch(free, id); isFree && !in[id] {
				in[id] = true
				chosen = append(chosen, id)
			}
		}
	}
	return chosen, len(chosen) == n
}

// giveBack undoes reservations, but for what the pod had before.
func (a *allocation) giveBack() {
	s := a.set
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, ids := range a.taken {
		for _, id := range ids {
			if s.used[name][id] == a.pod.UID && !slices.Contains(a.former[name], id) {
				delete(s.used[name], id)
			}
		}
		if len(s.used[name]) == 0 {
			delete(s.used, name)
		}
	}
}

// commit makes the grants durable. What the pod had before the boot and was not given again is free from now on.
func (a *allocation) commit() error {
	if len(a.grants) == 0 {
		return nil
	}
	s, uid := a.set, a.pod.UID
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	before, former := s.grants[uid], s.former[uid]
	s.grants[uid] = a.grants
	delete(s.former, uid)
	s.mu.Unlock()
	err := s.saveGrants()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.grants, uid)
		s.restore(uid, before, former)
		return err
	}
	for name, ids := range former {
		for _, id := range ids {
			if s.used[name][id] == uid && !a.has(name, id) {
				delete(s.used[name], id)
			}
		}
	}
	return nil
}

// check finds what cannot be passed on in a plugin's answer.
func check(r *pluginapi.ContainerAllocateResponse) error {
	for key := range r.Envs {
		if key == "" || strings.ContainsAny(key, "=\x00") {
			return fmt.Errorf("envs: %.100q is no name of a variable", key)
		}
	}
	for _, m := range r.Mounts {
		if !strings.HasPrefix(m.GetContainerPath(), "/") || !strings.HasPrefix(m.GetHostPath(), "/") {
			return fmt.Errorf("mounts: %.100q to %.100q: both must be absolute paths", m.GetHostPath(), m.GetContainerPath())
		}
	}
	for _, d := range r.Devices {
		if !strings.HasPrefix(d.GetContainerPath(), "/") || !strings.HasPrefix(d.GetHostPath(), "/") {
			return fmt.Errorf("devices: %.100q to %.100q: both must be absolute paths", d.GetHostPath(), d.GetContainerPath())
		}
		if strings.Trim(d.Permissions, "rwm") != "" {
			return fmt.Errorf("devices: %.100q: permissions %.100q are not some of rwm", d.HostPath, d.Permissions)
		}
	}
	for _, d := range r.CdiDevices {
		if d.GetName() == "" {
			return fmt.Errorf("cdi_devices: a name is missing")
		}
	}
	return nil
}

// held returns the pod's container's grants in the order of their names.
func (s *Set) held(pod types.UID, container string) (all []*grant, names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.grants[pod][container]
	for _, name := range slices.Sorted(maps.Keys(held)) {
		all, names = append(all, held[name]), append(names, name)
	}
	return all, names
}
