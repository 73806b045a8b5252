package criserver

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/ocitest"
)

const killedEnv = "CRI_TEST_KILLED"

// TestKilled kills a server, by signal 9 and at any moment, that makes and
// removes pods, and looks at what the next one finds: running containers answer
// and have the pids they had, and when all is removed nothing is left.
func TestKilled(t *testing.T) {
	if where := os.Getenv(killedEnv); where != "" {
		churn(t, where)
		return
	}
	t.Parallel()
	h := newHarness(t)
	h.pods = []string{"p"}
	adopted, where := 0, strings.Join([]string{h.dir, h.cgroup, ocitest.Program(t)}, " ")
	for i := range 15 {
		h.stop()
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), killedEnv+"="+where)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(60+37*i%200) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		h.start()
		list, err := h.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Containers {
			if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING && c.Metadata.Name == "long" {
				h.wantExec(c.Id, "hi\n", "echo", "hi")
				adopted++
			}
			if s := h.status(c.Id); c.Metadata.Name == "short" && s.State == runtimeapi.ContainerState_CONTAINER_EXITED && s.StartedAt != 0 && s.ExitCode != 9 {
				t.Errorf("after kill %d an exit code is lost: %v", i, s)
			}
		}
		h.removeAll()
		for _, d := range []string{"netns", "r", "cri/sandboxes", "cri/containers", "images/snapshots"} {
			left, err := os.ReadDir(h.dir + "/" + d)
			if err != nil || len(left) != 0 {
				t.Fatalf("after kill %d and removal, in %s: %v, %v", i, d, left, err)
			}
		}
	}
	if adopted == 0 {
		t.Error("no running container was adopted: the kills came too early to show anything")
	}
	t.Logf("%d running containers adopted", adopted)
}

// churn is the process that TestKilled kills.
func churn(t *testing.T, where string) {
	parts := strings.Fields(where)
	h := &harness{TB: t, dir: parts[0], cgroup: parts[1]}
	program, err := os.ReadFile(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	init, err := oci.NewInit(program)
	if err != nil {
		t.Fatal(err)
	}
	h.configure(init)
	h.start()
	for i := 0; ; i++ {
		config := h.podConfig("p")
		config.Metadata.Attempt = uint32(i)
		r, err := h.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		h.run(r.PodSandboxId, "long", "sleep", "1000")
		if i%2 == 0 {
			h.run(r.PodSandboxId, "short", "sh", "-c", "exit 9")
			continue
		}
		// Without "short", which the removal may kill before it exits by itself.
		if _, err := h.Runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
			t.Fatal(err)
		}
	}
}
