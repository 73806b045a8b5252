package critest

import (
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func containerStatusCases() []Case {
	return []Case{
		{"it says what was asked for", 0, statusEcho},
		{"it says where the log is", 0, statusLog},
		{"it says what is mounted", 0, statusMounts},
		{"the image is named by a digest", 0, statusImageRef},
		{"the image's ID is what the pull answered", 30, statusImageID},
		{"success is Completed", 0, statusCompleted},
		{"failure is Error with its code", 0, statusFailed},
		{"a signal is its number and 128", 0, statusSignal},
		{"what ran out of memory is OOMKilled", 0, statusOOM},
		{"times are in order", 0, statusTimes},
		{"a container that is not there is not found", 0, statusUnknown},
		{"details are given when they are asked for", 0, statusDetails},
		{"no details are given unasked", 0, statusNoDetails},
		{"it says what resources there are", 25, statusResources},
		{"it says who the program is", 31, statusUser},
		{"it says what signal stops it", 33, statusSignalName},
	}
}

func statusEcho(t *T) {
	c := t.config(forever()...)
	s := t.status(t.create(t.any(), c))
	got := &containerConfig{Metadata: s.Metadata, Labels: s.Labels, Annotations: s.Annotations}
	want := &containerConfig{Metadata: c.Metadata, Labels: c.Labels, Annotations: c.Annotations}
	if !proto.Equal(got, want) || s.Image.GetImage() == "" {
		t.Errorf("%v, want %v", s, want)
	}
}

func statusLog(t *T) {
	pod, c := t.any(), t.config(forever()...)
	if s := t.status(t.create(pod, c)); s.LogPath != logPath(pod, c) {
		t.Errorf("%v", s)
	}
}

func statusMounts(t *T) {
	c := t.config(forever()...)
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: t.folder(), Readonly: true}}
	s := t.status(t.create(t.any(), c))
	if len(s.Mounts) != 1 || s.Mounts[0].ContainerPath != "/data" || s.Mounts[0].HostPath != c.Mounts[0].HostPath || !s.Mounts[0].Readonly {
		t.Errorf("%v", s.Mounts)
	}
}

func statusImageRef(t *T) {
	want := strings.TrimSuffix(t.images.box, ":1") + "@" + t.images.digest(t.TB, t.images.box)
	if s := t.status(t.create(t.any(), t.config(forever()...))); s.ImageRef != want {
		t.Errorf("%q, want %q", s.ImageRef, want)
	}
}

func statusImageID(t *T) {
	id := t.create(t.any(), t.config(forever()...))
	want := t.pull(t.images.box)
	if s := t.status(id); s.ImageId != want {
		t.Errorf("%q, want %q", s.ImageId, want)
	}
	if l := t.containers(&runtimeapi.ContainerFilter{Id: id}); len(l) != 1 || l[0].ImageId != want {
		t.Errorf("%v, want %q", l, want)
	}
}

func (t *T) ends(c *containerConfig, code int32, reason string) {
	t.Helper()
	if s := t.exited(t.run(t.any(), c)); s.ExitCode != code || s.Reason != reason {
		t.Errorf("%v, want %d and %s", s, code, reason)
	}
}

func statusCompleted(t *T) { t.ends(t.config("true"), 0, "Completed") }
func statusFailed(t *T)    { t.ends(t.script("exit 200"), 200, "Error") }

func statusSignal(t *T) {
	// The first process of its namespace hears no signal of its own that it does not handle.
	c := t.script("kill -USR1 $$; sleep 100000")
	security(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	pod := t.own(func(c *sandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	if s := t.exited(t.run(pod, c)); s.ExitCode != 128+10 || s.Reason != "Error" {
		t.Errorf("%v", s)
	}
}

func statusOOM(t *T) {
	c := t.script("tail /dev/zero")
	c.Linux.Resources.MemoryLimitInBytes = 16 << 20
	s := t.exited(t.run(t.any(), c))
	if s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("%v", s)
	}
}

func statusTimes(t *T) {
	pod, c := t.any(), t.script("until test -e /tmp/go; do sleep 0.01; done; echo middle")
	id := t.run(pod, c)
	t.exec(id, "touch", "/tmp/go")
	s := t.exited(id)
	log := t.readLog(logPath(pod, c))
	if len(log) != 1 {
		t.Fatalf("%v", log)
	}
	if at := log[0].at.UnixNano(); !slices.IsSorted([]int64{1, s.CreatedAt, s.StartedAt, s.FinishedAt}) || at < s.CreatedAt || at > s.FinishedAt {
		t.Errorf("%v, printed at %d", s, at)
	}
}

func statusUnknown(t *T) {
	_, err := t.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "0123456789abcdef"})
	t.refused("the status of nothing", err, codes.NotFound)
}

func (t *T) details(verbose bool) map[string]string {
	t.Helper()
	id := t.sleeper(t.any())
	r, err := t.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: verbose})
	if err != nil {
		t.Fatal(err)
	}
	return r.Info
}

func statusDetails(t *T) {
	if pid, ok := t.info(t.details(true), "info")["pid"].(float64); !ok || pid < 1 {
		t.Errorf("pid %v", pid)
	}
}

func statusNoDetails(t *T) {
	if d := t.details(false); len(d) != 0 {
		t.Errorf("%v", d)
	}
}

func statusResources(t *T) {
	c := t.config(forever()...)
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 50_000, CpuShares: 512, MemoryLimitInBytes: 64 << 20}
	r := t.status(t.create(t.any(), c)).Resources.GetLinux()
	if r.GetCpuPeriod() != 100_000 || r.GetCpuQuota() != 50_000 || r.GetCpuShares() != 512 || r.GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("%v", r)
	}
}

func statusUser(t *T) {
	c := t.config(forever()...)
	security(c).RunAsUsername, security(c).SupplementalGroups = "alice", []int64{2000}
	u := t.status(t.run(t.any(), c)).User.GetLinux()
	groups := slices.Sorted(slices.Values(u.GetSupplementalGroups()))
	if u.GetUid() != 1000 || u.GetGid() != 1001 || !slices.Equal(groups, []int64{50, 1001, 2000}) {
		t.Errorf("%v", u)
	}
}

func statusSignalName(t *T) {
	c := t.config(forever()...)
	t.with(t.images.app)(c)
	if s := t.status(t.create(t.any(), c)); s.StopSignal != runtimeapi.Signal_SIGNAL_SIGUSR1 {
		t.Errorf("%v", s)
	}
}

func (t *T) containers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	t.Helper()
	r, err := t.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: f})
	if err != nil {
		t.Fatalf("list containers: %v", err)
	}
	return r.Containers
}

func containerListCases() []Case {
	return []Case{
		{"all are there without a filter", 0, listAll},
		{"an item says what was asked for", 0, listItem},
		{"one is found by its ID", 0, listByID},
		{"an ID that is not there finds none", 0, listNone},
		{"they are found by their sandbox", 0, listBySandbox},
		{"they are found by their state", 0, listByState},
		{"they are found by a label", 0, listByLabel},
		{"labels are asked for together", 0, listByLabels},
		{"ID, sandbox, state and label are asked for together", 0, listByEverything},
		{"they come in a stream too", 36, listStream},
	}
}

func (t *T) wantContainers(f *runtimeapi.ContainerFilter, want ...string) {
	t.Helper()
	var got []string
	for _, c := range t.containers(f) {
		got = append(got, c.Id)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%v finds %v, want %v", f, got, want)
	}
}

// triple is a container in each state, in a pod of their own, with labels.
func (t *T) triple() (pod pods, ids [3]string, label map[string]string) {
	t.Helper()
	pod, label = t.own(), map[string]string{"set": t.unique("set")}
	for i, cmd := range [][]string{forever(), forever(), {"true"}} {
		c := t.config(cmd...)
		c.Labels["set"], c.Labels["state"] = label["set"], []string{"created", "running", "exited"}[i]
		ids[i] = t.create(pod, c)
		if i > 0 {
			t.start(ids[i])
		}
	}
	t.exited(ids[2])
	return pod, ids, label
}

func inState(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
	return &runtimeapi.ContainerStateValue{State: s}
}

func listAll(t *T) {
	_, ids, _ := t.triple()
	n := 0
	for _, c := range t.containers(nil) {
		if slices.Contains(ids[:], c.Id) {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d of 3", n)
	}
}

func listItem(t *T) {
	pod, c := t.any(), t.config(forever()...)
	id := t.create(pod, c)
	l := t.containers(&runtimeapi.ContainerFilter{Id: id})
	if len(l) != 1 {
		t.Fatalf("%v", l)
	}
	s := t.status(id)
	want := &runtimeapi.Container{
		Id: id, PodSandboxId: pod.id, Metadata: c.Metadata, State: created, CreatedAt: s.CreatedAt, ImageId: s.ImageId,
		Image: l[0].Image, ImageRef: l[0].ImageRef, Labels: c.Labels, Annotations: c.Annotations,
	}
	if !proto.Equal(l[0], want) || l[0].Image.GetImage() == "" || l[0].ImageRef == "" {
		t.Errorf("%v, want %v", l[0], want)
	}
}

func listByID(t *T) {
	id := t.sleeper(t.any())
	t.wantContainers(&runtimeapi.ContainerFilter{Id: id}, id)
}

func listNone(t *T) { t.wantContainers(&runtimeapi.ContainerFilter{Id: "0123456789abcdef"}) }

func listBySandbox(t *T) {
	pod, ids, _ := t.triple()
	t.wantContainers(&runtimeapi.ContainerFilter{PodSandboxId: pod.id}, ids[:]...)
	t.wantContainers(&runtimeapi.ContainerFilter{PodSandboxId: "0123456789abcdef"})
}

func listByState(t *T) {
	_, ids, label := t.triple()
	for i, s := range []runtimeapi.ContainerState{created, running, exited} {
		t.wantContainers(&runtimeapi.ContainerFilter{State: inState(s), LabelSelector: label}, ids[i])
	}
}

func listByLabel(t *T) {
	_, ids, label := t.triple()
	t.wantContainers(&runtimeapi.ContainerFilter{LabelSelector: label}, ids[:]...)
}

func listByLabels(t *T) {
	_, ids, label := t.triple()
	label["state"] = "running"
	t.wantContainers(&runtimeapi.ContainerFilter{LabelSelector: label}, ids[1])
	label["state"] = "other"
	t.wantContainers(&runtimeapi.ContainerFilter{LabelSelector: label})
}

func listByEverything(t *T) {
	pod, ids, label := t.triple()
	f := &runtimeapi.ContainerFilter{Id: ids[0], PodSandboxId: pod.id, State: inState(created), LabelSelector: label}
	t.wantContainers(f, ids[0])
	f.PodSandboxId = t.any().id
	t.wantContainers(f)
	f.PodSandboxId, f.State = pod.id, inState(exited)
	t.wantContainers(f)
}

func listStream(t *T) {
	_, ids, label := t.triple()
	stream, err := t.Runtime.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: label}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range collect(t, stream.Recv, (*runtimeapi.StreamContainersResponse).GetContainers) {
		got = append(got, c.Id)
	}
	slices.Sort(got)
	if want := slices.Sorted(slices.Values(ids[:])); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
