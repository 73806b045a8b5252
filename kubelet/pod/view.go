package pod

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/spec"
)

// Container is one container of the runtime.
type Container struct {
	*runtimeapi.ContainerStatus
	Sandbox string
}

// Running reports whether it runs.
func (c *Container) Running() bool {
	return c != nil && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING
}

// Exited reports whether it has ended.
func (c *Container) Exited() bool {
	return c != nil && c.State == runtimeapi.ContainerState_CONTAINER_EXITED
}

// View is what the runtime has of one pod. It is immutable.
type View struct {
	Sandboxes  []*runtimeapi.PodSandboxStatus // newest first
	Containers map[string][]*Container        // by name, newest first
}

// Sandbox returns the newest sandbox, nil where there is none.
func (v *View) Sandbox() *runtimeapi.PodSandboxStatus {
	if len(v.Sandboxes) == 0 {
		return nil
	}
	return v.Sandboxes[0]
}

// Ready returns the sandbox that containers can be started in, nil where there is none.
func (v *View) Ready() *runtimeapi.PodSandboxStatus {
	if s := v.Sandbox(); s != nil && s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
		return s
	}
	return nil
}

// Latest returns the newest container of the name, in any sandbox.
func (v *View) Latest(name string) *Container {
	if cs := v.Containers[name]; len(cs) > 0 {
		return cs[0]
	}
	return nil
}

// Alive returns the containers that run or may run.
func (v *View) Alive() (alive []*Container) {
	for _, cs := range v.Containers {
		for _, c := range cs {
			if !c.Exited() && c.State != runtimeapi.ContainerState_CONTAINER_CREATED {
				alive = append(alive, c)
			}
		}
	}
	slices.SortFunc(alive, func(a, b *Container) int { return strings.Compare(a.Metadata.Name, b.Metadata.Name) })
	return alive
}

// IPs returns the addresses of the sandbox.
func (v *View) IPs() []string {
	s := v.Sandbox()
	if s.GetNetwork().GetIp() == "" {
		return nil
	}
	ips := []string{s.Network.Ip}
	for _, p := range s.Network.AdditionalIps {
		ips = append(ips, p.Ip)
	}
	return ips
}

// reasonLost is the reason of a container of which the runtime knows nothing any more.
const reasonLost = "ContainerStatusUnknown"

// withLost returns the view completed by containers that the API knows but the runtime has lost: they count as killed.
func (v *View) withLost(pod *corev1.Pod) *View {
	lost := &View{Sandboxes: v.Sandboxes, Containers: map[string][]*Container{}}
	for n, cs := range v.Containers {
		lost.Containers[n] = cs
	}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			s := &list[i]
			if s.ContainerID == "" || len(v.Containers[s.Name]) > 0 {
				continue
			}
			lost.Containers[s.Name] = []*Container{lostContainer(s)}
		}
	}
	return lost
}

func lostContainer(s *corev1.ContainerStatus) *Container {
	_, id, _ := strings.Cut(s.ContainerID, "://")
	c := &Container{ContainerStatus: &runtimeapi.ContainerStatus{
		Id: id, State: runtimeapi.ContainerState_CONTAINER_EXITED, ExitCode: 137, Reason: reasonLost,
		Message:  "The container could not be located when the pod was terminated",
		Metadata: &runtimeapi.ContainerMetadata{Name: s.Name, Attempt: uint32(s.RestartCount)},
		Image:    &runtimeapi.ImageSpec{Image: s.Image}, ImageRef: s.ImageID,
	}}
	if t := s.State.Terminated; t != nil {
		c.ExitCode, c.Reason, c.Message = t.ExitCode, t.Reason, t.Message
		c.StartedAt, c.FinishedAt = t.StartedAt.UnixNano(), t.FinishedAt.UnixNano()
	}
	return c
}

// viewer reads Views of one pod, asking again only for what can have changed. Not for concurrent use.
type viewer struct {
	cri        *cri.Client
	uid        types.UID
	sandboxes  map[string]*runtimeapi.PodSandboxStatus
	containers map[string]*Container
}

func newViewer(c *cri.Client, uid types.UID) *viewer {
	return &viewer{cri: c, uid: uid, sandboxes: map[string]*runtimeapi.PodSandboxStatus{}, containers: map[string]*Container{}}
}

// read asks the runtime. The statuses of a container that has ended, or that still is in the same state, are taken from the
// last time.
func (r *viewer) read(ctx context.Context) (*View, error) {
	selector := map[string]string{spec.PodUIDLabel: string(r.uid)}
	sandboxes, err := r.cri.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: selector}})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	containers, err := r.cri.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: selector}})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	v := &View{Containers: map[string][]*Container{}}
	if v.Sandboxes, err = r.readSandboxes(ctx, sandboxes.Items); err != nil {
		return nil, err
	}
	seen := make(map[string]*Container, len(containers.Containers))
	for _, c := range containers.Containers {
		have := r.containers[c.Id]
		if have == nil || have.State != c.State {
			got, err := r.cri.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
			if cri.Code(err) == codes.NotFound {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("status of container %s: %w", c.Id, err)
			}
			have = &Container{got.Status, c.PodSandboxId}
		}
		seen[c.Id] = have
		name := have.Metadata.Name
		v.Containers[name] = append(v.Containers[name], have)
	}
	r.containers = seen
	for _, cs := range v.Containers {
		slices.SortStableFunc(cs, func(a, b *Container) int {
			return cmp.Or(cmp.Compare(b.Metadata.Attempt, a.Metadata.Attempt), cmp.Compare(b.CreatedAt, a.CreatedAt))
		})
	}
	return v, nil
}

// forget makes the next read ask for the container, which was changed.
func (r *viewer) forget(id string) { delete(r.containers, id) }

func (r *viewer) readSandboxes(ctx context.Context, items []*runtimeapi.PodSandbox) ([]*runtimeapi.PodSandboxStatus, error) {
	seen := make(map[string]*runtimeapi.PodSandboxStatus, len(items))
	var out []*runtimeapi.PodSandboxStatus
	for _, s := range items {
		have := r.sandboxes[s.Id]
		if have == nil || have.State != s.State {
			got, err := r.cri.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.Id})
			if cri.Code(err) == codes.NotFound {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("status of sandbox %s: %w", s.Id, err)
			}
			have = got.Status
		}
		seen[s.Id] = have
		out = append(out, have)
	}
	r.sandboxes = seen
	slices.SortStableFunc(out, func(a, b *runtimeapi.PodSandboxStatus) int {
		return cmp.Or(cmp.Compare(b.GetMetadata().GetAttempt(), a.GetMetadata().GetAttempt()), cmp.Compare(b.CreatedAt, a.CreatedAt))
	})
	return out, nil
}
