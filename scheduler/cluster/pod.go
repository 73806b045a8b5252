package cluster

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/resource"

	"github.com/yare-dev/yare/api"
)

// Pod is a pod as the scheduler sees it: what its spec means, worked out once.
type Pod struct {
	*corev1.Pod
	UID      types.UID
	Requests []Request // without the pod itself; no zeros
	Load     [2]int64  // see Cluster.Loaded
	Ports    []Port
	Class    *Class
	Owner    types.UID // of its controller
	// Affinity and Anti are the required terms, Near the preferred ones with positive (affinity) and negative
	// (anti-affinity) weights.
	Affinity, Anti []*Term
	Near           []Weighted

	terms []carried // what it carries for others
	node  string
}

// Request is an amount of a resource, which has a column of Cluster.Used, or none where no node offers it and no class of devices
// serves it.
type Request struct {
	Name   corev1.ResourceName
	Column int // negative: none
	Amount int64
}

// Port is a host port. IP is 0.0.0.0 for all addresses.
type Port struct {
	IP       string
	Protocol corev1.Protocol
	Number   int32
}

// Class is what affinity terms and spread constraints can see of a pod. Pods with the same namespace and labels share one.
type Class struct {
	Namespace string
	Labels    labels.Set
}

// Term is a selector of pods in some namespaces, and a topology key.
type Term struct {
	Key        string
	Selector   labels.Selector
	namespaces []string        // sorted
	namespace  labels.Selector // of namespaces' labels; nil: none
	id         string          // the same for terms that mean the same
}

// Weighted is a preferred term.
type Weighted struct {
	*Term
	Weight int32
}

// role is what a carried term means to others.
type role byte

const (
	roleAnti     role = 'x' // must not be near
	roleAffinity role = '!' // must be near
	rolePrefers  role = 'p' // would be near
)

type carried struct {
	*Term
	role   role
	weight int32
}

// Pod works out what p means. Selectors that cannot be read are an error: such a pod can be placed nowhere.
func (c *Cluster) Pod(p *corev1.Pod) (*Pod, error) {
	out := &Pod{Pod: p, UID: p.UID, Class: c.class(p)}
	if ref := metav1.GetControllerOfNoCopy(p); ref != nil {
		out.Owner = ref.UID
	}
	out.Requests, out.Load = c.requests(p), load(p)
	out.Ports = ports(p)
	return out, out.readTerms()
}

func (c *Cluster) requests(p *corev1.Pod) (out []Request) {
	for name, q := range resource.PodRequests(p, held()) {
		if n := amount(name, corev1.ResourceList{name: q}); n != 0 && !byClaim(p, name) {
			column, ok := c.resources[name]
			if !ok {
				column = -1
			}
			out = append(out, Request{name, column, n})
		}
	}
	slices.SortFunc(out, func(a, b Request) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return out
}

// SameRequests says that p, a newer state of the pod, counts as much as it did. Once it was resized, that is also for its status to say.
func (c *Cluster) SameRequests(old *Pod, p *corev1.Pod) bool {
	return p.Generation <= 1 || slices.Equal(old.Requests, c.requests(p)) && old.Load == load(p)
}

// held is how requests are counted: those of a pod that is being resized, or its containers, are the larger of what it has and what it
// is to have.
func held() resource.PodResourcesOptions {
	return resource.PodResourcesOptions{UseStatusResources: true, InPlacePodLevelResourcesVerticalScalingEnabled: true}
}

// load returns what p asks for, with defaults for containers that ask for nothing.
func load(p *corev1.Pod) [2]int64 {
	missing := corev1.ResourceList{}
	missing[corev1.ResourceCPU] = *newMilli(DefaultCPU)
	missing[corev1.ResourceMemory] = *newBytes(DefaultMemory)
	opts := held()
	opts.NonMissingContainerRequests = missing
	list := resource.PodRequests(p, opts)
	return [2]int64{amount(corev1.ResourceCPU, list), amount(corev1.ResourceMemory, list)}
}

func ports(p *corev1.Pod) []Port {
	var out []Port
	add := func(cs []corev1.Container) {
		for i := range cs {
			for _, port := range cs[i].Ports {
				if port.HostPort == 0 {
					continue
				}
				h := Port{port.HostIP, port.Protocol, port.HostPort}
				if h.IP == "" || h.IP == "::" {
					h.IP = "0.0.0.0"
				}
				if h.Protocol == "" {
					h.Protocol = corev1.ProtocolTCP
				}
				out = append(out, h)
			}
		}
	}
	add(p.Spec.Containers)
	for i := range p.Spec.InitContainers {
		if api.Sidecar(&p.Spec.InitContainers[i]) {
			add(p.Spec.InitContainers[i : i+1])
		}
	}
	return out
}

func (c *Cluster) class(p *corev1.Pod) *Class {
	id := p.Namespace + "\x00" + labels.Set(p.Labels).String()
	k := c.classes[id]
	if k == nil {
		if len(c.classes) > maxClasses {
			// Classes of pods that are gone. Live pods keep theirs; matches are worked out again.
			clear(c.classes)
			for _, k := range c.carriers {
				clear(k.matches)
			}
			for _, k := range c.counters {
				clear(k.known)
			}
		}
		k = &Class{p.Namespace, p.Labels}
		c.classes[id] = k
	}
	return k
}

const maxClasses = 50_000

func (p *Pod) readTerms() error {
	a := p.Spec.Affinity
	if a == nil {
		return nil
	}
	if a := a.PodAffinity; a != nil {
		for i := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			t, err := p.term(&a.RequiredDuringSchedulingIgnoredDuringExecution[i])
			if err != nil {
				return err
			}
			p.Affinity = append(p.Affinity, t)
			p.terms = append(p.terms, carried{t, roleAffinity, 1})
		}
		if err := p.prefer(a.PreferredDuringSchedulingIgnoredDuringExecution, 1); err != nil {
			return err
		}
	}
	if a := a.PodAntiAffinity; a != nil {
		for i := range a.RequiredDuringSchedulingIgnoredDuringExecution {
			t, err := p.term(&a.RequiredDuringSchedulingIgnoredDuringExecution[i])
			if err != nil {
				return err
			}
			p.Anti = append(p.Anti, t)
			p.terms = append(p.terms, carried{t, roleAnti, 1})
		}
		return p.prefer(a.PreferredDuringSchedulingIgnoredDuringExecution, -1)
	}
	return nil
}

func (p *Pod) prefer(ws []corev1.WeightedPodAffinityTerm, sign int32) error {
	for i := range ws {
		t, err := p.term(&ws[i].PodAffinityTerm)
		if err != nil {
			return err
		}
		p.Near = append(p.Near, Weighted{t, sign * ws[i].Weight})
		p.terms = append(p.terms, carried{t, rolePrefers, sign * ws[i].Weight})
	}
	return nil
}

// term reads an affinity term of p's.
func (p *Pod) term(a *corev1.PodAffinityTerm) (*Term, error) {
	sel, err := metav1.LabelSelectorAsSelector(a.LabelSelector)
	if err != nil {
		return nil, err
	}
	if sel, err = WithKeys(sel, a.MatchLabelKeys, p.Labels, true); err != nil {
		return nil, err
	}
	if sel, err = WithKeys(sel, a.MismatchLabelKeys, p.Labels, false); err != nil {
		return nil, err
	}
	t := &Term{Key: a.TopologyKey, Selector: sel, namespaces: slices.Sorted(slices.Values(a.Namespaces))}
	if a.NamespaceSelector != nil {
		if t.namespace, err = metav1.LabelSelectorAsSelector(a.NamespaceSelector); err != nil {
			return nil, err
		}
	} else if len(t.namespaces) == 0 {
		t.namespaces = []string{p.Namespace}
	}
	t.name()
	return t, nil
}

// name fills in the id.
func (t *Term) name() {
	id := []string{t.Key, t.Selector.String(), strings.Join(t.namespaces, ","), "-"}
	if t.namespace != nil {
		id[3] = "+" + t.namespace.String()
	}
	t.id = strings.Join(id, "\x00")
}

// SpreadTerm returns the Term of a spread constraint, which counts pods of one namespace.
func SpreadTerm(key string, sel labels.Selector, namespace string) *Term {
	t := &Term{Key: key, Selector: sel, namespaces: []string{namespace}}
	t.name()
	return t
}

// WithKeys adds to sel that these labels have the values in set (or have not).
func WithKeys(sel labels.Selector, keys []string, set labels.Set, same bool) (labels.Selector, error) {
	op := map[bool]metav1.LabelSelectorOperator{true: metav1.LabelSelectorOpIn, false: metav1.LabelSelectorOpNotIn}[same]
	for _, key := range keys {
		value, ok := set[key]
		if !ok {
			continue
		}
		one, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: op, Values: []string{value}}}})
		if err != nil {
			return nil, err
		}
		rs, _ := one.Requirements()
		sel = sel.Add(rs...)
	}
	return sel, nil
}

// Matches says whether the term selects pods of class k.
func (c *Cluster) Matches(t *Term, k *Class) bool {
	_, listed := slices.BinarySearch(t.namespaces, k.Namespace)
	if !listed && (t.namespace == nil || !t.namespace.Matches(c.namespaces[k.Namespace])) {
		return false
	}
	return t.Selector.Matches(k.Labels)
}
