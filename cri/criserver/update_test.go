package criserver

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestUpdateSandbox: what a pod's resources were changed to is its configuration, also after a restart, and what was not said stays.
func TestUpdateSandbox(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	for _, r := range []*runtimeapi.UpdatePodSandboxResourcesRequest{
		{Overhead: &runtimeapi.LinuxContainerResources{CpuShares: 10}, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100}},
		{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 200}}, {},
	} {
		r.PodSandboxId = pod
		if _, err := h.Runtime.UpdatePodSandboxResources(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		sb, err := h.server.findSandbox(pod)
		if err != nil {
			t.Fatal(err)
		}
		linux := sb.record().Config.Linux
		if linux.GetOverhead().GetCpuShares() != 10 || linux.GetResources().GetCpuShares() != 200 || linux.CgroupParent != h.cgroup+"/p" {
			t.Errorf("%v", linux)
		}
		h.stop()
		h.start()
	}
}
