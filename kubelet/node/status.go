package node

import (
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/devices"
	"github.com/yare-dev/yare/stream"
)

const (
	maxImages      = 50 // listed in the status
	maxImageNames  = 5  // of one image
	kubeletVersion = "v1.37.2"
)

// Config is what the operator says of the node.
type Config struct {
	Name      string
	Addresses []string // IPs, the first is the main one
	Port      int32    // of the kubelet's server
	MaxPods   int64
	Reserved  corev1.ResourceList // taken from capacity, not for pods
	// Kept returns what of a capacity is kept free besides, by eviction; nil: nothing.
	Kept func(corev1.ResourceList) corev1.ResourceList
	// Under reports whether the Node has a condition of pressure; nil: none.
	Under  func(corev1.NodeConditionType) bool
	Labels map[string]string
	Taints []corev1.Taint
	Root   string // the kubelet's folder, whose file system is the node's storage
	// Listed is told which images there are; nil: nobody asks.
	Listed func([]*runtimeapi.Image)
	// Devices returns what device plugins offer, by resource; nil: none.
	Devices func() map[corev1.ResourceName]devices.Count
	// InUse returns the attached volumes that pods of the node have, or are to have; Reported is told when the Node has them.
	InUse    func() ([]corev1.UniqueVolumeName, error)
	Reported func([]corev1.UniqueVolumeName)
}

// Runtime is what the container runtime says.
type Runtime struct {
	Version string // "yare://1.0"
	Status  *runtimeapi.StatusResponse
	Err     error // it does not answer
	Images  []*runtimeapi.Image
}

// Status returns what the Node's status should be. What others own in the old status (attached volumes, their conditions)
// stays.
func Status(c Config, f Facts, rt Runtime, old *corev1.NodeStatus, now time.Time) corev1.NodeStatus {
	st := *old.DeepCopy()
	st.Capacity = capacity(c, f, old)
	st.Allocatable = allocatable(c, st.Capacity)
	offer(&st, c.Devices, old)
	st.Addresses = nil
	for _, ip := range c.Addresses {
		st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	st.Addresses = append(st.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: c.Name})
	st.DaemonEndpoints.KubeletEndpoint.Port = c.Port
	st.NodeInfo = corev1.NodeSystemInfo{
		MachineID: f.MachineID, SystemUUID: f.SystemUUID, BootID: f.BootID, KernelVersion: f.Kernel, OSImage: f.OSImage,
		ContainerRuntimeVersion: rt.Version, KubeletVersion: kubeletVersion, KubeProxyVersion: "", OperatingSystem: "linux", Architecture: f.Architecture,
	}
	if f.Swap > 0 { // the API refuses none
		st.NodeInfo.Swap = &corev1.NodeSwapStatus{Capacity: &f.Swap}
	}
	st.DeclaredFeatures = []string{stream.NodeFeature, api.ResizesWholePods}
	st.Images = images(rt.Images)
	st.RuntimeHandlers = handlers(rt.Status)
	if features := rt.Status.GetFeatures(); features != nil {
		st.Features = &corev1.NodeFeatures{SupplementalGroupsPolicy: &features.SupplementalGroupsPolicy}
	}
	under := func(t corev1.NodeConditionType) bool { return c.Under != nil && c.Under(t) }
	memory, disk, pids := under(corev1.NodeMemoryPressure), under(corev1.NodeDiskPressure), under(corev1.NodePIDPressure)
	set(&st, corev1.NodeMemoryPressure, memory, now, pick(memory, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
		pick(memory, "kubelet has insufficient memory available", "kubelet has sufficient memory available"))
	set(&st, corev1.NodeDiskPressure, disk, now, pick(disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
		pick(disk, "kubelet has disk pressure", "kubelet has no disk pressure"))
	set(&st, corev1.NodePIDPressure, pids, now, pick(pids, "KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
		pick(pids, "kubelet has insufficient PID available", "kubelet has sufficient PID available"))
	why := NotReady(rt)
	set(&st, corev1.NodeReady, why == "", now, pick(why == "", "KubeletReady", "KubeletNotReady"),
		pick(why == "", "kubelet is posting ready status", why))
	return st
}

// NotReady says why the runtime cannot run pods; "" when it can.
func NotReady(rt Runtime) string {
	if rt.Err != nil {
		return "container runtime is down: " + rt.Err.Error()
	}
	var why []string
	seen := map[string]bool{}
	for _, c := range rt.Status.GetStatus().GetConditions() {
		seen[c.Type] = true
		if c.Status || c.Type != runtimeapi.RuntimeReady && c.Type != runtimeapi.NetworkReady {
			continue
		}
		name := "container runtime network not ready"
		if c.Type == runtimeapi.RuntimeReady {
			name = "container runtime not ready"
		}
		why = append(why, name+": "+c.Type+"=false reason:"+c.Reason+" message:"+c.Message)
	}
	if !seen[runtimeapi.RuntimeReady] {
		why = append(why, "container runtime status check may not have completed yet")
	}
	return strings.Join(why, ", ")
}

func pick(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

func bytesOf(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }

func capacity(c Config, f Facts, old *corev1.NodeStatus) corev1.ResourceList {
	l := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(int64(f.CPUs)*1000, resource.DecimalSI),
		corev1.ResourceMemory: bytesOf(f.Memory),
		corev1.ResourcePods:   *resource.NewQuantity(c.MaxPods, resource.DecimalSI),
	}
	if f.Storage > 0 {
		l[corev1.ResourceEphemeralStorage] = bytesOf(f.Storage)
	}
	for size, n := range f.Hugepages {
		l[corev1.ResourceName(corev1.ResourceHugePagesPrefix+size)] = bytesOf(n)
	}
	for name, q := range old.Capacity { // extended resources that someone else counts
		if strings.Contains(string(name), "/") {
			l[name] = q
		}
	}
	return l
}

// offer shows what device plugins have.
func offer(st *corev1.NodeStatus, counts func() map[corev1.ResourceName]devices.Count, old *corev1.NodeStatus) {
	if counts == nil {
		return
	}
	for name, n := range counts() {
		st.Capacity[name] = *resource.NewQuantity(n.Capacity, resource.DecimalSI)
		if q, ok := old.Capacity[name]; ok && n.Unknown {
			st.Capacity[name] = q
		}
		st.Allocatable[name] = *resource.NewQuantity(n.Allocatable, resource.DecimalSI)
	}
}

// allocatable is the capacity without what is reserved, what eviction keeps free and, of memory, what is never given away (hugepages).
func allocatable(c Config, capacity corev1.ResourceList) corev1.ResourceList {
	l := corev1.ResourceList{}
	var kept corev1.ResourceList
	if c.Kept != nil {
		kept = c.Kept(capacity)
	}
	for name, q := range capacity {
		q = q.DeepCopy()
		if r, ok := c.Reserved[name]; ok {
			q.Sub(r)
		}
		if r, ok := kept[name]; ok {
			q.Sub(r)
		}
		if name == corev1.ResourceMemory {
			for other, pages := range capacity {
				if strings.HasPrefix(string(other), corev1.ResourceHugePagesPrefix) {
					q.Sub(pages)
				}
			}
		}
		if q.Sign() < 0 {
			q = *resource.NewQuantity(0, q.Format)
		}
		l[name] = q
	}
	return l
}

// images lists the largest images, names with digests first, as upstream does.
func images(all []*runtimeapi.Image) []corev1.ContainerImage {
	var out []corev1.ContainerImage
	for _, i := range all {
		names := append(slices.Clone(i.RepoDigests), i.RepoTags...)
		if len(names) > maxImageNames {
			names = names[:maxImageNames]
		}
		if len(names) > 0 {
			out = append(out, corev1.ContainerImage{Names: names, SizeBytes: int64(i.Size)})
		}
	}
	slices.SortStableFunc(out, func(a, b corev1.ContainerImage) int {
		if a.SizeBytes != b.SizeBytes {
			return int(max(-1, min(1, b.SizeBytes-a.SizeBytes)))
		}
		return strings.Compare(a.Names[0], b.Names[0])
	})
	return out[:min(len(out), maxImages)]
}

func handlers(s *runtimeapi.StatusResponse) (out []corev1.NodeRuntimeHandler) {
	for _, h := range s.GetRuntimeHandlers() {
		n := corev1.NodeRuntimeHandler{Name: h.Name}
		if f := h.Features; f != nil {
			rro, users := f.RecursiveReadOnlyMounts, f.UserNamespaces
			n.Features = &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &rro, UserNamespaces: &users}
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b corev1.NodeRuntimeHandler) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func set(st *corev1.NodeStatus, t corev1.NodeConditionType, truth bool, now time.Time, reason, message string) {
	status := corev1.ConditionFalse
	if truth {
		status = corev1.ConditionTrue
	}
	stamp := metav1.Time{Time: now.Truncate(time.Second)}
	next := corev1.NodeCondition{Type: t, Status: status, Reason: reason, Message: message, LastHeartbeatTime: stamp, LastTransitionTime: stamp}
	for i := range st.Conditions {
		if c := &st.Conditions[i]; c.Type == t {
			if c.Status == status {
				next.LastTransitionTime = c.LastTransitionTime
			}
			*c = next
			return
		}
	}
	st.Conditions = append(st.Conditions, next)
}

// differs reports whether two statuses differ in more than heartbeats and in free memory's and storage's usual noise.
func differs(a, b *corev1.NodeStatus) bool {
	x, y := a.DeepCopy(), b.DeepCopy()
	for _, s := range []*corev1.NodeStatus{x, y} {
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
	}
	return !same(x, y)
}

// labels are those that every kubelet gives its node.
func labels(c Config, f Facts) map[string]string {
	l := map[string]string{
		corev1.LabelHostname: c.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: f.Architecture,
		"beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": f.Architecture,
	}
	maps.Copy(l, c.Labels)
	return l
}
