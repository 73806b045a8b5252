package criserver

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/ocitest"
)

const killedEnv = "CRI_TEST_KILLED"

// TestKilled kills a server, by signal 9 and at any moment, that makes and
// removes pods, and looks at what the next one finds: running containers answer
// and have the pids they had, and when all is removed nothing is left. How far
// the server gets before it is killed is counted in its steps, however slow the
// machine is.
func TestKilled(t *testing.T) {
	if where := os.Getenv(killedEnv); where != "" {
		churn(t, where)
		return
	}
	t.Parallel()
	h := newHarness(t)
	h.pods = []string{"p"}
	adopted, where := 0, strings.Join([]string{h.dir, h.cgroup, ocitest.Program(t), h.handler}, " ")
	for i := range 15 {
		h.stop()
		killAfter(t, where, 1+i%9, time.Duration(7*i%20)*time.Millisecond)
		h.configure(h.deps.Init) // which opens the images, as the next process does
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
		for _, d := range []string{"netns", "r", "cri/sandboxes", "cri/containers", "images/snapshots", "images/tmp"} {
			left, err := os.ReadDir(h.dir + "/" + d)
			if err != nil || len(left) != 0 {
				t.Fatalf("after kill %d and removal, in %s: %v, %v", i, d, left, err)
			}
		}
	}
	// The first pod of each process stays: from its third step on one is there.
	if adopted < 10 {
		t.Errorf("%d running containers were adopted: the kills came too early to show anything", adopted)
	}
	t.Logf("%d running containers adopted", adopted)
}

// killAfter kills a process that churns a while after it has made so many steps.
func killAfter(t *testing.T, where string, steps int, later time.Duration) {
	t.Helper()
	told, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), killedEnv+"="+where)
	cmd.ExtraFiles = []*os.File{tell}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadFull(told, make([]byte, steps))
	time.Sleep(later) // somewhere within the next step
	if killErr := cmd.Process.Kill(); killErr != nil {
		t.Error(killErr)
	}
	_ = cmd.Wait()
	if err != nil {
		t.Fatalf("it ended before its step %d: %v", steps, err)
	}
}

// churn is the process that TestKilled kills. It tells of each step on
// descriptor 3.
func churn(t *testing.T, where string) {
	parts := strings.Fields(where)
	h := &harness{TB: t, dir: parts[0], cgroup: parts[1]}
	if len(parts) > 3 {
		h.handler = parts[3]
	}
	program, err := os.ReadFile(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	init, err := oci.NewInit(program)
	if err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(3) // shims are to live longer
	tell := os.NewFile(3, "steps")
	step := func() {
		if _, err := tell.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	h.configure(init)
	h.start()
	step()
	for i := 0; ; i++ {
		config := h.podConfig("p")
		config.Metadata.Attempt = uint32(i)
		r, err := h.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: h.handler})
		if err != nil {
			t.Fatal(err)
		}
		step()
		h.run(r.PodSandboxId, "long", "sleep", "1000")
		step()
		if i%2 == 0 {
			h.run(r.PodSandboxId, "short", "sh", "-c", "exit 9")
			step()
			continue
		}
		// Without "short", which the removal may kill before it exits by itself.
		if _, err := h.Runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
			t.Fatal(err)
		}
		step()
	}
}
