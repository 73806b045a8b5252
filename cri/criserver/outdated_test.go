package criserver

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci/ocitest"
)

// TestOutdatedShims: what a server of another release has started lives on under this one, is stopped as usual, and whoever wants more is
// told what to do. A pod of which nothing runs any more gets a new sandbox.
func TestOutdatedShims(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pods := map[string]string{}
	ids := map[string]string{}
	for _, name := range []string{"lives", "ends"} {
		pods[name] = h.runPod(name)
		ids[name] = h.run(pods[name], name, "sh", "-c", "trap 'exit 7' TERM; : > /tmp/ready; while :; do sleep 0.01; done")
		h.wantExec(ids[name], "ready\n", "sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.01; done; echo ready")
	}
	pid := func() int {
		c, err := h.server.findContainer(ids["lives"])
		if err != nil {
			t.Fatal(err)
		}
		return c.pid
	}
	before := pid()
	h.stop()
	for _, pod := range pods {
		ocitest.OldShim(t, h.server.shimDir(pod), false)
	}
	h.start()
	if s := h.status(ids["lives"]); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || pid() != before {
		t.Fatalf("pid %d, was %d: %v", pid(), before, s)
	}
	_, err := h.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: ids["lives"], Cmd: []string{"true"}})
	if err == nil || !strings.Contains(err.Error(), "the pod must be deleted") {
		t.Errorf("exec: %v", err)
	}
	_, err = h.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pods["lives"], Config: h.containerConfig("more", "true")})
	if err == nil || !strings.Contains(err.Error(), "the pod must be deleted") {
		t.Errorf("create: %v", err)
	}
	if _, err := h.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: ids["lives"]}); err != nil {
		t.Error(err)
	}
	if _, err := h.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: ids["ends"], Timeout: 10}); err != nil {
		t.Error(err)
	}
	if s := h.exited(ids["ends"]); s.ExitCode != 7 {
		t.Errorf("ended with %v", s)
	}
	sb, err := h.server.findSandbox(pods["ends"])
	if err != nil {
		t.Fatal(err)
	}
	<-h.client(sb).Done() // closed by the clean-up, which holds the lock
	sb.op.Lock()
	defer sb.op.Unlock()
	if rec := sb.record(); !rec.Stopped {
		t.Error("a sandbox in which nothing can be started is still ready")
	}
}
