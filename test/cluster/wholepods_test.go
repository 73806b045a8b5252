package cluster_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// whole is a pod that shares what it has as a whole. Its second container has a limit of its own, which it is restarted for; what it needs
// of memory is free only while the first one holds nothing.
const whole = `
apiVersion: v1
kind: Pod
metadata: {name: whole}
spec:
  terminationGracePeriodSeconds: 0
  resources: {requests: {cpu: 100m}, limits: {cpu: 500m, memory: 64Mi}}
  volumes: [{name: held, emptyDir: {medium: Memory}}]
  containers:
  - name: shares
    image: busybox:1
    command: [sleep, "100000"]
    volumeMounts: [{name: held, mountPath: /held}]
    env: [{name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}]
  - name: own
    image: busybox:1
    command: [sleep, "100000"]
    resources: {requests: {cpu: 50m}, limits: {memory: 48Mi}}
    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
`

// TestWholePods is about pods that have resources as a whole: their groups in the kernel, who is killed for want of memory, and resizes.
func TestWholePods(t *testing.T) {
	c := newCluster(t, "wholepods")
	c.busybox()
	c.apply(whole)
	c.kubectl("wait", "--for=condition=Ready", "pod/whole", "--timeout=60s")
	get := func(path string) string { return c.kubectl("get", "pod", "whole", "-o", "jsonpath="+path) }
	if got := get("{.status.qosClass} {.spec.resources} {.status.resources} {.status.allocatedResources}"); got !=
		`Burstable {"limits":{"cpu":"500m","memory":"64Mi"},"requests":{"cpu":"100m","memory":"48Mi"}} `+
			`{"limits":{"cpu":"500m","memory":"64Mi"},"requests":{"cpu":"100m","memory":"48Mi"}} {"cpu":"100m","memory":"48Mi"}` {
		t.Error("the pod says", got)
	}
	// groups checks the files of the groups of the pod and its containers, whatever version of cgroups each is in.
	groups := func(want map[string]string) {
		t.Helper()
		ids := map[string]string{"pod": "pod" + get("{.metadata.uid}")}
		for i, name := range []string{"shares", "own"} {
			_, ids[name], _ = strings.Cut(get("{.status.containerStatuses["+string(rune('0'+i))+"].containerID}"), "://")
		}
		for what, values := range want {
			name, files, _ := strings.Cut(what, " ")
			v1, v2, _ := strings.Cut(files, "|")
			in1, in2, _ := strings.Cut(values, "|")
			switch got1, got2 := groupFile(ids[name], v1), groupFile(ids[name], v2); {
			case got1 != in1 && got2 != in2:
				t.Errorf("%s: %q in v1, %q in v2, want %s", what, got1, got2, values)
			}
		}
	}
	groups(map[string]string{
		"pod memory.limit_in_bytes|memory.max": "67108864|67108864", "shares memory.limit_in_bytes|memory.max": "67108864|67108864",
		"own memory.limit_in_bytes|memory.max": "50331648|50331648",
		"pod cpu.cfs_quota_us|cpu.max":         "50000|50000 100000", "shares cpu.cfs_quota_us|cpu.max": "50000|50000 100000",
		"pod cpu.shares|cpu.weight": "102|4",
	})
	if out := c.kubectl("exec", "whole", "-c", "shares", "--", "sh", "-c", "echo $LIMIT"); out != "64\n" {
		t.Error("the limit that the container is told:", out)
	}

	// One container needs what it could have, if the other one had not taken it: that kills by the pod's limit.
	const need = "head -c 40m /dev/zero | tail -n 1 >/dev/null"
	if out, err := c.tryKubectl("exec", "whole", "-c", "own", "--", "sh", "-c", need); err != nil {
		t.Fatalf("alone: %v %s", err, out)
	}
	c.kubectl("exec", "whole", "-c", "shares", "--", "dd", "if=/dev/zero", "of=/held/it", "bs=1M", "count=40")
	if out, err := c.tryKubectl("exec", "whole", "-c", "own", "--", "sh", "-c", need); err == nil || !strings.Contains(out, "code 137") {
		t.Errorf("beside what the other container holds: %v %s", err, out)
	}

	// Less than is used it cannot become; then it becomes larger, and the container that asks for that is restarted.
	resize := func(resources, own string) {
		t.Helper()
		c.kubectl("patch", "pod", "whole", "--subresource", "resize", "-p",
			`{"spec":{"resources":{"limits":{"memory":"`+resources+`"},"requests":{"memory":"`+own+`"}},"containers":[{"name":"own","resources":{"requests":{"memory":"`+own+
				`"},"limits":{"memory":"`+own+`"}}}]}}`)
	}
	resize("30Mi", "16Mi")
	c.kubectl("wait", "--for=jsonpath={.status.conditions[?(@.type=='PodResizeInProgress')].reason}=Error", "pod/whole", "--timeout=60s")
	if got := get("{.status.conditions[?(@.type=='PodResizeInProgress')].message}"); !strings.Contains(got, "memory limit (31457280) below current usage") {
		t.Error("a limit below what is used:", got)
	}
	if got := get("{.status.resources.limits.memory}"); got != "64Mi" {
		t.Error("the pod has, while it uses more than it is to have,", got)
	}
	resize("128Mi", "96Mi")
	done := func() bool {
		return get("{.status.resources.limits.memory} {.status.containerStatuses[?(@.name=='own')].resources.limits.memory} "+
			"{.status.containerStatuses[?(@.name=='own')].ready} {.status.conditions[?(@.type=='PodResizeInProgress')].reason}") == "128Mi 96Mi true "
	}
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is not resized: " + get("{.status}"))
		}
	}
	groups(map[string]string{
		"pod memory.limit_in_bytes|memory.max": "134217728|134217728", "shares memory.limit_in_bytes|memory.max": "134217728|134217728",
		"own memory.limit_in_bytes|memory.max": "100663296|100663296",
	})
	if got := get("{.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Error("the container that needs no restart had some:", got)
	}
	if out, err := c.tryKubectl("exec", "whole", "-c", "own", "--", "sh", "-c", need); err != nil {
		t.Errorf("with more room: %v %s", err, out)
	}
	if out, err := c.tryKubectl("patch", "pod", "whole", "-p", `{"spec":{"resources":{"limits":{"memory":"1Gi"}}}}`); err == nil || !strings.Contains(out, "pod updates may not change fields") {
		t.Errorf("other than by a resize: %v %s", err, out)
	}
	c.kubectl("delete", "pod", "whole")
}

// groupFile reads a file of the group of that name, "" where there is none.
func groupFile(group, file string) (text string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == group {
			if b, err := os.ReadFile(filepath.Join(path, file)); err == nil {
				text = strings.TrimSpace(string(b))
				return fs.SkipAll
			}
		}
		return nil
	})
	return text
}
