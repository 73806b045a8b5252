package critest

import (
	"regexp"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func versionCases() []Case {
	return []Case{
		{"the runtime has a name and a version", 0, versionNamed},
		{"the API's version is v1", 0, versionAPI},
		{"a client's own version is no matter", 0, versionAsked},
	}
}

func (t *T) version(asked string) *runtimeapi.VersionResponse {
	t.Helper()
	v, err := t.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{Version: asked})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func versionNamed(t *T) {
	v := t.version("")
	if v.RuntimeName == "" || !regexp.MustCompile(`^v?\d+\.\d+\.\d+`).MatchString(v.RuntimeVersion) {
		t.Errorf("%v", v)
	}
}

func versionAPI(t *T) {
	if v := t.version(""); v.RuntimeApiVersion != "v1" || v.Version == "" {
		t.Errorf("%v", v)
	}
}

func versionAsked(t *T) {
	if a, b := t.version(""), t.version("0.1.0"); a.RuntimeName != b.RuntimeName || a.RuntimeApiVersion != b.RuntimeApiVersion {
		t.Errorf("%v and %v", a, b)
	}
}

func statusCases() []Case {
	return []Case{
		{"the runtime is ready", 0, statusRuntimeReady},
		{"the network is ready", 0, statusNetworkReady},
		{"details are given when they are asked for", 0, statusVerbose},
		{"no details are given unasked", 0, statusTerse},
		{"the handler without a name is among the handlers", 30, statusHandlers},
		{"handlers have different names", 30, statusHandlersDiffer},
		{"supplemental groups policy is a feature", 31, statusGroupsPolicy},
		{"mount options are a feature", 37, statusMountOptions},
		{"the cgroup driver is told", 28, runtimeConfigDriver},
		{"the pod range may be told", 0, updateRuntimeConfig},
		{"an empty pod range may be told", 0, updateRuntimeConfigEmpty},
	}
}

func (t *T) serverStatus(verbose bool) *runtimeapi.StatusResponse {
	t.Helper()
	s, err := t.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: verbose})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (t *T) condition(name string) {
	t.Helper()
	n := 0
	for _, c := range t.serverStatus(false).Status.Conditions {
		if c.Type == name {
			n++
			if !c.Status {
				t.Errorf("%v", c)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d conditions %s", n, name)
	}
}

func statusRuntimeReady(t *T) { t.condition(runtimeapi.RuntimeReady) }
func statusNetworkReady(t *T) { t.condition(runtimeapi.NetworkReady) }

func statusVerbose(t *T) {
	if s := t.serverStatus(true); len(s.Info) == 0 {
		t.Error("no details")
	}
}

func statusTerse(t *T) {
	if s := t.serverStatus(false); len(s.Info) != 0 {
		t.Errorf("details: %v", s.Info)
	}
}

func statusHandlers(t *T) {
	for _, h := range t.serverStatus(false).RuntimeHandlers {
		if h.Name == "" {
			return
		}
	}
	t.Error("no handler for pods without a RuntimeClass")
}

func statusHandlersDiffer(t *T) {
	seen := map[string]bool{}
	for _, h := range t.serverStatus(false).RuntimeHandlers {
		if seen[h.Name] {
			t.Errorf("handler %q is there twice", h.Name)
		}
		seen[h.Name] = true
	}
}

func statusGroupsPolicy(t *T) {
	if f := t.serverStatus(false).Features; !f.GetSupplementalGroupsPolicy() {
		t.Errorf("%v", f)
	}
}

func statusMountOptions(t *T) {
	if f := t.serverStatus(false).Features; !f.GetMountOptions() {
		t.Errorf("%v", f)
	}
}

func runtimeConfigDriver(t *T) {
	r, err := t.Runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || r.Linux.GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("%v, %v", r, err)
	}
}

func (t *T) tellRange(cidr string) {
	t.Helper()
	_, err := t.Runtime.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
	})
	if err != nil {
		t.Error(err)
	}
}

func updateRuntimeConfig(t *T)      { t.tellRange("192.0.2.0/24") }
func updateRuntimeConfigEmpty(t *T) { t.tellRange("") }

func checkpointCases() []Case {
	return []Case{
		{"a container that is not there cannot be written down", 25, checkpointUnknown},
		{"a pod that is not there cannot be written down", 37, checkpointPodUnknown},
		{"what is not there cannot be restored", 37, restoreUnknown},
	}
}

func checkpointUnknown(t *T) {
	_, err := t.Runtime.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: "none", Location: t.folder() + "/checkpoint"})
	t.refused("checkpoint", err, codes.Unimplemented, codes.NotFound)
}

func checkpointPodUnknown(t *T) {
	_, err := t.Runtime.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: "none", OutputPath: t.folder(), ContainerIds: []string{"none"}})
	t.refused("checkpoint", err, codes.Unimplemented, codes.NotFound)
}

func restoreUnknown(t *T) {
	_, err := t.Runtime.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{CheckpointPath: t.folder(), Config: t.sandboxConfig()})
	t.refused("restore", err)
}
