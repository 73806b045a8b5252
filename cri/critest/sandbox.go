package critest

import (
	"io"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
)

func (t *T) sandboxStatus(id string) *runtimeapi.PodSandboxStatus {
	t.Helper()
	r, err := t.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		t.Fatalf("sandbox status: %v", err)
	}
	return r.Status
}

func (t *T) stopPod(id string) {
	t.Helper()
	if _, err := t.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatalf("stop sandbox: %v", err)
	}
}

func (t *T) removePod(id string) {
	t.Helper()
	if _, err := t.Runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatalf("remove sandbox: %v", err)
	}
}

func sandboxStopCases() []Case {
	return []Case{
		{"the sandbox is not ready any more", 0, stopPodState},
		{"running containers are killed", 0, stopPodKills},
		{"created containers go too", 0, stopPodCreated},
		{"it may be repeated", 0, stopPodTwice},
		{"a sandbox that was removed may be stopped", 32, stopPodRemoved},
		{"a stopped sandbox takes no containers", 0, stopPodRefuses},
		{"a stopped sandbox keeps its name", 0, stopPodName},
		{"logs stay", 0, stopPodLogs},
	}
}

func stopPodState(t *T) {
	pod, _ := t.newPod()
	t.stopPod(pod)
	if s := t.sandboxStatus(pod); s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("%v", s)
	}
}

func stopPodKills(t *T) {
	pod := t.own()
	a, b := t.sleeper(pod), t.sleeper(pod)
	t.stopPod(pod.id)
	for _, id := range []string{a, b} {
		if s := t.status(id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
			t.Errorf("%v", s)
		}
	}
}

func stopPodCreated(t *T) {
	pod := t.own()
	id := t.create(pod, t.config(forever()...))
	t.stopPod(pod.id)
	t.refused("the start in a stopped sandbox", t.tryStart(id))
}

func stopPodTwice(t *T) {
	pod, _ := t.newPod()
	for range 3 {
		t.stopPod(pod)
	}
}

// The kubelet's attempts may come after the removal.
func stopPodRemoved(t *T) {
	pod, _ := t.newPod()
	t.stopPod(pod)
	t.removePod(pod)
	t.stopPod(pod)
}

func stopPodRefuses(t *T) {
	pod := t.own()
	t.stopPod(pod.id)
	t.refused("a container in a stopped sandbox", t.runs(pod, t.config(forever()...)))
}

func stopPodName(t *T) {
	pod, config := t.newPod()
	t.stopPod(pod)
	t.refused("the same name and attempt", t.tryPod(clone(config), ""))
}

func stopPodLogs(t *T) {
	pod := t.own()
	c := t.script("echo here")
	t.finish(pod, c)
	t.stopPod(pod.id)
	if got := said(t.readLog(logPath(pod, c)), "stdout"); got != "here\n" {
		t.Errorf("%q", got)
	}
}

func sandboxRemoveCases() []Case {
	return []Case{
		{"the sandbox is gone", 0, removePodGone},
		{"its containers are gone", 0, removePodContainers},
		{"a ready sandbox with running containers is removed", 0, removePodRunning},
		{"it may be repeated", 0, removePodTwice},
		{"a sandbox that never was is no error", 0, removePodUnknown},
		{"the name is free again", 0, removePodName},
		{"the address is free again", 0, removePodAddress},
	}
}

func removePodGone(t *T) {
	pod, _ := t.newPod()
	t.stopPod(pod)
	t.removePod(pod)
	_, err := t.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	t.refused("the status of a removed sandbox", err, codes.NotFound)
	if l := t.sandboxes(&runtimeapi.PodSandboxFilter{Id: pod}); len(l) != 0 {
		t.Errorf("%v", l)
	}
}

func removePodContainers(t *T) {
	pod := t.own()
	id := t.sleeper(pod)
	t.stopPod(pod.id)
	t.removePod(pod.id)
	_, err := t.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	t.refused("the status of its container", err, codes.NotFound)
}

func removePodRunning(t *T) {
	pod := t.own()
	id := t.sleeper(pod)
	t.removePod(pod.id)
	_, err := t.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	t.refused("the status of its container", err, codes.NotFound)
}

func removePodTwice(t *T) {
	pod, _ := t.newPod()
	t.stopPod(pod)
	for range 3 {
		t.removePod(pod)
	}
}

func removePodUnknown(t *T) { t.removePod("0123456789abcdef") }

func removePodName(t *T) {
	pod, config := t.newPod()
	t.stopPod(pod)
	t.removePod(pod)
	t.runPod(clone(config))
}

func removePodAddress(t *T) {
	for range 3 {
		pod, _ := t.newPod()
		if ip := t.sandboxStatus(pod).Network.GetIp(); ip == "" {
			t.Error("no address")
		}
		t.stopPod(pod)
		t.removePod(pod)
	}
}

func sandboxStatusCases() []Case {
	return []Case{
		{"it says what was asked for", 0, podStatusEcho},
		{"it says when the sandbox was made", 0, podStatusCreated},
		{"it says what namespaces there are", 0, podStatusNamespaces},
		{"a sandbox that is not there is not found", 0, podStatusUnknown},
		{"details are given when they are asked for", 0, podStatusVerbose},
		{"no details are given unasked", 0, podStatusTerse},
		{"it says what state the containers are in", 26, podStatusContainers},
	}
}

func podStatusEcho(t *T) {
	pod, config := t.newPod()
	s := t.sandboxStatus(pod)
	if s.Id != pod || !proto.Equal(s.Metadata, config.Metadata) || s.RuntimeHandler != t.Handler {
		t.Errorf("%v", s)
	}
	got := &runtimeapi.PodSandboxConfig{Labels: s.Labels, Annotations: s.Annotations}
	if want := (&runtimeapi.PodSandboxConfig{Labels: config.Labels, Annotations: config.Annotations}); !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func podStatusCreated(t *T) {
	a, _ := t.newPod()
	b, _ := t.newPod()
	if x, y := t.sandboxStatus(a).CreatedAt, t.sandboxStatus(b).CreatedAt; x <= 0 || y <= x {
		t.Errorf("the first %d, the second %d", x, y)
	}
}

func podStatusNamespaces(t *T) {
	want := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_POD, Pid: runtimeapi.NamespaceMode_POD, Ipc: runtimeapi.NamespaceMode_NODE}
	pod, _ := t.newPod(func(c *sandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = clone(want) })
	if got := t.sandboxStatus(pod).Linux.GetNamespaces().GetOptions(); !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func podStatusUnknown(t *T) {
	_, err := t.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "0123456789abcdef"})
	t.refused("the status of no sandbox", err, codes.NotFound)
}

func (t *T) podStatus(verbose bool) *runtimeapi.PodSandboxStatusResponse {
	t.Helper()
	r, err := t.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: t.any().id, Verbose: verbose})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func podStatusVerbose(t *T) { t.info(t.podStatus(true).Info, "info") }

func podStatusTerse(t *T) {
	if r := t.podStatus(false); len(r.Info) != 0 {
		t.Errorf("%v", r.Info)
	}
}

func podStatusContainers(t *T) {
	pod := t.own()
	running, created := t.sleeper(pod), t.create(pod, t.config(forever()...))
	r, err := t.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.id})
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]runtimeapi.ContainerState{}
	for _, c := range r.ContainersStatuses {
		states[c.Id] = c.State
	}
	if len(states) != 2 || states[running] != runtimeapi.ContainerState_CONTAINER_RUNNING || states[created] != runtimeapi.ContainerState_CONTAINER_CREATED || r.Timestamp <= 0 {
		t.Errorf("%v", r)
	}
}

func (t *T) sandboxes(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	t.Helper()
	r, err := t.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: f})
	if err != nil {
		t.Fatalf("list sandboxes: %v", err)
	}
	return r.Items
}

func sandboxListCases() []Case {
	return []Case{
		{"all are there without a filter", 0, listPodsAll},
		{"an item says what was asked for", 0, listPodsItem},
		{"one is found by its ID", 0, listPodsByID},
		{"an ID that is not there finds none", 0, listPodsNone},
		{"they are found by their state", 0, listPodsByState},
		{"they are found by a label", 0, listPodsByLabel},
		{"labels are asked for together", 0, listPodsByLabels},
		{"ID, state and label are asked for together", 0, listPodsByAll},
		{"they come in a stream too", 36, listPodsStream},
	}
}

func (t *T) wantPods(f *runtimeapi.PodSandboxFilter, want ...string) {
	t.Helper()
	var got []string
	for _, p := range t.sandboxes(f) {
		got = append(got, p.Id)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%v finds %v, want %v", f, got, want)
	}
}

func listPodsAll(t *T) {
	a, _ := t.newPod()
	b, _ := t.newPod()
	n := 0
	for _, p := range t.sandboxes(nil) {
		if p.Id == a || p.Id == b {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d of 2", n)
	}
}

func listPodsItem(t *T) {
	id, config := t.newPod()
	want := &runtimeapi.PodSandbox{
		Id: id, Metadata: config.Metadata, State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: t.sandboxStatus(id).CreatedAt,
		Labels: config.Labels, Annotations: config.Annotations, RuntimeHandler: t.Handler,
	}
	if l := t.sandboxes(&runtimeapi.PodSandboxFilter{Id: id}); len(l) != 1 || !proto.Equal(l[0], want) {
		t.Errorf("%v, want %v", l, want)
	}
}

func listPodsByID(t *T) {
	id, _ := t.newPod()
	t.wantPods(&runtimeapi.PodSandboxFilter{Id: id}, id)
}

func listPodsNone(t *T) { t.wantPods(&runtimeapi.PodSandboxFilter{Id: "0123456789abcdef"}) }

func podsIn(state runtimeapi.PodSandboxState, labels map[string]string) *runtimeapi.PodSandboxFilter {
	return &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: state}, LabelSelector: labels}
}

// labelled are two pods with a label of their own; the second is stopped.
func (t *T) labelled() (ready, stopped string, label map[string]string) {
	t.Helper()
	label = map[string]string{"set": t.unique("set")}
	ready, _ = t.newPod(func(c *sandboxConfig) { c.Labels["set"], c.Labels["which"] = label["set"], "first" })
	stopped, _ = t.newPod(func(c *sandboxConfig) { c.Labels["set"], c.Labels["which"] = label["set"], "second" })
	t.stopPod(stopped)
	return ready, stopped, label
}

func listPodsByState(t *T) {
	ready, stopped, label := t.labelled()
	t.wantPods(podsIn(runtimeapi.PodSandboxState_SANDBOX_READY, label), ready)
	t.wantPods(podsIn(runtimeapi.PodSandboxState_SANDBOX_NOTREADY, label), stopped)
}

func listPodsByLabel(t *T) {
	ready, stopped, label := t.labelled()
	t.wantPods(&runtimeapi.PodSandboxFilter{LabelSelector: label}, ready, stopped)
}

func listPodsByLabels(t *T) {
	ready, _, label := t.labelled()
	label["which"] = "first"
	t.wantPods(&runtimeapi.PodSandboxFilter{LabelSelector: label}, ready)
	label["which"] = "third"
	t.wantPods(&runtimeapi.PodSandboxFilter{LabelSelector: label})
}

func listPodsByAll(t *T) {
	ready, stopped, label := t.labelled()
	f := podsIn(runtimeapi.PodSandboxState_SANDBOX_READY, label)
	f.Id = ready
	t.wantPods(f, ready)
	f.Id = stopped
	t.wantPods(f)
}

func listPodsStream(t *T) {
	ready, stopped, label := t.labelled()
	stream, err := t.Runtime.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: label}})
	if err != nil {
		t.Fatal(err)
	}
	got := collect(t, stream.Recv, func(m *runtimeapi.StreamPodSandboxesResponse) []*runtimeapi.PodSandbox { return m.PodSandboxes })
	if len(got) != 2 || got[0].Id == got[1].Id || !slices.Contains([]string{ready, stopped}, got[0].Id) {
		t.Errorf("%v", got)
	}
}

// collect reads a stream of lists to its end. No list may be empty.
func collect[M, I any](t *T, recv func() (M, error), items func(M) []I) []I {
	t.Helper()
	var all []I
	for {
		m, err := recv()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatalf("stream: %v (%v)", err, cri.Code(err))
		}
		if len(items(m)) == 0 {
			t.Errorf("an empty list in the stream")
		}
		all = append(all, items(m)...)
	}
}
