//go:build guest

package guest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/yare-dev/yare/test/cluster/hoststate"
)

const manifest = `
apiVersion: v1
kind: ConfigMap
metadata: {name: hello}
data: {greeting: Ahoy}
---
apiVersion: v1
kind: Secret
metadata: {name: hello}
stringData: {token: secret}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: hello, labels: {app: hello}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: hello
    image: hello:1
    env:
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: hello, key: token}}}
    volumeMounts: [{name: config, mountPath: /etc/hello}]
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1, timeoutSeconds: 5}
    resources:
      requests: {cpu: 100m, memory: 32Mi}
      limits: {cpu: 500m, memory: 64Mi, hugepages-2Mi: 4Mi}
  volumes: [{name: config, configMap: {name: hello}}]
---
apiVersion: v1
kind: Pod
metadata: {name: guaranteed}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: box:1
    command: [sh, -c, 'echo it runs; exec sleep 1000000']
    readinessProbe: {exec: {command: [test, -e, /bin/sh]}, periodSeconds: 1, timeoutSeconds: 10}
    livenessProbe: {exec: {command: ["true"]}, periodSeconds: 5, timeoutSeconds: 10}
    resources:
      limits: {cpu: "1", memory: 48Mi}
---
apiVersion: v1
kind: Pod
metadata: {name: besteffort}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: hello, image: hello:1, command: [/hello, idle]}]
---
apiVersion: v1
kind: Pod
metadata: {name: whole}
spec:
  terminationGracePeriodSeconds: 0
  resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 500m, memory: 64Mi, hugepages-2Mi: 2Mi}}
  containers: [{name: box, image: "box:1", command: [sleep, "1000000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: box
    image: box:1
    # The shell would live on if the kernel took only the process that asked for too much.
    command: [sh, -c, 'tail /dev/zero; sleep 1000000']
    resources: {limits: {memory: 24Mi}}
`

// TestCluster goes through the life of a cluster on a host with cgroup v2 alone.
func TestCluster(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "kubeconfig"))
	images := map[string]string{"box:1": busybox(t), "hello:1": t.TempDir()}
	run(t, "cp", "/v2/bin/hello", images["hello:1"])
	before := takeState(t)
	run(t, "yare", "up")
	t.Cleanup(func() {
		if t.Failed() {
			out, err := try(t, "", "kubectl", "get", "pods,events", "-o", "wide")
			t.Log(out, err)
			log, _ := os.ReadFile("/var/lib/yare/default/server.log")
			t.Logf("server log:\n%s", log[max(0, len(log)-6000):])
		}
		run(t, "yare", "down")
		if d := hoststate.Diff(before, takeState(t)); len(d) > 0 {
			t.Errorf("left behind or taken away by the cluster:\n%s", strings.Join(d, "\n"))
		}
	})
	for tag, dir := range images {
		run(t, "yare", "image", "build-from", dir, "--tag", tag, "--entrypoint", map[string]string{"hello:1": "/hello"}[tag])
	}
	feed(t, manifest, "kubectl", "apply", "-f", "-")
	run(t, "kubectl", "wait", "--for=condition=Ready", "pod/hello", "pod/guaranteed", "pod/besteffort", "pod/whole", "--timeout=100s")
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"limits", testLimits}, {"resources of the whole", testWhole}, {"out of memory", testOutOfMemory}, {"exec and logs", testExec}, {"service", testService},
		{"statistics", testStatistics}, {"server is killed", testKilledServer}, {"pod is deleted", testDelete},
	} {
		t.Run(step.name, step.do)
	}
}

func takeState(t *testing.T) hoststate.State {
	t.Helper()
	s, err := hoststate.Take()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// groups are where a pod's group and its only container's are, below root.
func groups(t *testing.T, pod string) (group, container string) {
	t.Helper()
	out := run(t, "kubectl", "get", "pod", pod, "-o", "jsonpath={.status.qosClass} {.metadata.uid} {.status.containerStatuses[0].containerID}")
	f := strings.Fields(out)
	if len(f) != 3 {
		t.Fatalf("pod %s: %s", pod, out)
	}
	group = "yare/default/kubepods/"
	if f[0] != "Guaranteed" {
		group += strings.ToLower(f[0]) + "/"
	}
	group += "pod" + f[1]
	_, id, _ := strings.Cut(f[2], "://")
	return group, group + "/" + id
}

func testLimits(t *testing.T) {
	pod, container := groups(t, "hello")
	expect(t, pod, map[string]string{"cpu.max": "50000 100000", "cpu.weight": "4", "memory.max": "67108864", "pids.max": "max", "hugetlb.2MB.max": "4194304"})
	expect(t, container, map[string]string{"cpu.max": "50000 100000", "cpu.weight": "17", "memory.max": "67108864", "memory.swap.max": "0",
		"memory.high": "max", "memory.oom.group": "1", "hugetlb.2MB.max": "4194304", "cgroup.type": "domain"})
	pod, container = groups(t, "guaranteed")
	expect(t, pod, map[string]string{"cpu.max": "100000 100000", "cpu.weight": "39", "memory.max": "50331648"})
	expect(t, container, map[string]string{"cpu.max": "100000 100000", "memory.max": "50331648", "memory.swap.max": "0"})
	pod, container = groups(t, "besteffort")
	expect(t, pod, map[string]string{"cpu.max": "max 100000", "cpu.weight": "1", "memory.max": "max"})
	expect(t, container, map[string]string{"cpu.weight": "1", "memory.max": "max"})
	expect(t, "yare/default/kubepods/besteffort", map[string]string{"cpu.weight": "1"})
	// A container sees its own group as the root, and cannot write to it.
	if out := run(t, "kubectl", "exec", "guaranteed", "--", "sh", "-c", "cat /proc/self/cgroup; cat /sys/fs/cgroup/memory.max; mkdir /sys/fs/cgroup/x 2>&1 || true"); !strings.Contains(out, "0::/\n50331648\n") || !strings.Contains(out, "Read-only") {
		t.Errorf("a container sees:\n%s", out)
	}
}

// testWhole is about a pod that has resources as a whole, and a container that has none of its own.
func testWhole(t *testing.T) {
	pod, container := groups(t, "whole")
	expect(t, pod, map[string]string{"cpu.max": "50000 100000", "cpu.weight": "4", "memory.max": "67108864", "memory.high": "max", "hugetlb.2MB.max": "2097152"})
	expect(t, container, map[string]string{"cpu.max": "50000 100000", "cpu.weight": "59", "memory.max": "67108864", "memory.swap.max": "0", "hugetlb.2MB.max": "2097152"})
	run(t, "kubectl", "patch", "pod", "whole", "--subresource", "resize", "-p", `{"spec":{"resources":{"requests":{"cpu":"200m"},"limits":{"cpu":"1","memory":"96Mi"}}}}`)
	run(t, "kubectl", "wait", "--for=jsonpath={.status.resources.limits.memory}=96Mi", "pod/whole", "--timeout=100s")
	expect(t, pod, map[string]string{"cpu.max": "100000 100000", "cpu.weight": "8", "memory.max": "100663296", "memory.high": "max"})
	expect(t, container, map[string]string{"cpu.max": "100000 100000", "cpu.weight": "100", "memory.max": "100663296"})
}

func testOutOfMemory(t *testing.T) {
	run(t, "kubectl", "wait", "--for=jsonpath={.status.phase}=Failed", "pod/hungry", "--timeout=100s")
	if out := run(t, "kubectl", "get", "pod", "hungry", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}"); out != "OOMKilled 137" {
		t.Error(out)
	}
}

func testExec(t *testing.T) {
	_, container := groups(t, "guaranteed")
	if out := run(t, "kubectl", "exec", "guaranteed", "--", "sh", "-c", "readlink /proc/self/ns/cgroup; readlink /proc/1/ns/cgroup"); len(slices.Compact(strings.Fields(out))) != 1 {
		t.Errorf("another cgroup namespace: %s", out)
	}
	feed(t, "", "kubectl", "exec", "guaranteed", "--", "sh", "-c", "sleep 1000000 >/dev/null 2>&1 &")
	sleeping := 0
	for pid := range strings.FieldsSeq(read(t, root, container, "cgroup.procs")) {
		if comm, err := os.ReadFile("/proc/" + pid + "/comm"); err == nil && string(comm) == "sleep\n" { // not a probe's
			sleeping++
		}
	}
	if sleeping != 2 {
		t.Errorf("%d processes sleep in the container's group, want the first and what exec left", sleeping)
	}
	if out := run(t, "kubectl", "logs", "guaranteed"); out != "it runs\n" {
		t.Errorf("logs: %q", out)
	}
}

func testService(t *testing.T) {
	eventually(t, func() string {
		out, err := try(t, "", "kubectl", "exec", "besteffort", "--", "/hello", "get", "http://hello.default.svc.cluster.local/")
		if err == nil && strings.HasPrefix(out, "Ahoy from") && strings.Contains(out, "secret 2bb80d53") {
			return ""
		}
		return out
	})
}

func testStatistics(t *testing.T) {
	node := run(t, "kubectl", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	eventually(t, func() string {
		raw := run(t, "kubectl", "get", "--raw", "/api/v1/nodes/"+node+"/proxy/stats/summary")
		type usage struct {
			CPU    struct{ UsageCoreNanoSeconds, UsageNanoCores uint64 }
			Memory struct{ WorkingSetBytes, UsageBytes, RSSBytes uint64 }
		}
		var s struct {
			Node usage
			Pods []struct {
				usage
				PodRef     struct{ Name string }
				Containers []usage
				Process    struct {
					ProcessCount uint64 `json:"process_count"`
				} `json:"process_stats"`
			}
		}
		if err := json.Unmarshal([]byte(raw), &s); err != nil {
			t.Fatalf("%v: %s", err, raw)
		}
		if s.Node.CPU.UsageCoreNanoSeconds == 0 || s.Node.Memory.WorkingSetBytes == 0 {
			return "no figures of the node: " + raw
		}
		for _, p := range s.Pods {
			if p.PodRef.Name != "hello" {
				continue
			}
			for _, u := range append([]usage{p.usage}, p.Containers...) {
				if u.CPU.UsageCoreNanoSeconds == 0 || u.Memory.WorkingSetBytes == 0 || u.Memory.UsageBytes == 0 || u.Memory.RSSBytes == 0 {
					return "no figures of the pod: " + raw
				}
			}
			if len(p.Containers) == 1 {
				return ""
			}
		}
		return "no pod: " + raw
	})
}

// testKilledServer kills the server: the containers notice nothing, and the next server takes them over.
func testKilledServer(t *testing.T) {
	_, container := groups(t, "hello")
	processes := read(t, root, container, "cgroup.procs")
	id := run(t, "kubectl", "get", "pod", "hello", "-o", "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}")
	var status struct{ PID int }
	if out := run(t, "yare", "status", "-o", "json"); json.Unmarshal([]byte(out), &status) != nil || status.PID == 0 {
		t.Fatal(out)
	}
	if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	run(t, "yare", "up")
	run(t, "kubectl", "wait", "--for=condition=Ready", "pod/hello", "--timeout=100s")
	if now := run(t, "kubectl", "get", "pod", "hello", "-o", "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}"); now != id {
		t.Errorf("container %s became %s", id, now)
	}
	if now := read(t, root, container, "cgroup.procs"); now != processes {
		t.Errorf("processes %s became %s", processes, now)
	}
	if out := run(t, "kubectl", "exec", "guaranteed", "--", "echo", "still here"); out != "still here\n" {
		t.Error(out)
	}
}

// testDelete deletes a pod: its groups go.
func testDelete(t *testing.T) {
	pod, _ := groups(t, "besteffort")
	run(t, "kubectl", "delete", "pod", "besteffort", "--timeout=60s")
	eventually(t, func() string {
		if _, err := os.Stat(filepath.Join(root, pod)); err == nil {
			return pod + " is still there"
		}
		return ""
	})
}
