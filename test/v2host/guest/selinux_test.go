//go:build guest

package guest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const labelledPods = `
apiVersion: v1
kind: ConfigMap
metadata: {name: note}
data: {text: read}
---
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: box:1
    command: [sleep, "1000000"]
    volumeMounts: [{name: own, mountPath: /own}, {name: note, mountPath: /note}, {name: host, mountPath: /host}, {name: theirs, mountPath: /theirs}]
  - name: other
    image: box:1
    command: [sleep, "1000000"]
    volumeMounts: [{name: own, mountPath: /own}]
  volumes: [{name: own, emptyDir: {}}, {name: note, configMap: {name: note}}, {name: host, hostPath: {path: /srv/host}}, {name: theirs, hostPath: {path: /srv/theirs}}]
---
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: box, image: "box:1", command: [sleep, "1000000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: asked}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {seLinuxOptions: {level: "s0:c5,c6"}}
  containers:
  - {name: box, image: "box:1", command: [sleep, "1000000"]}
  - {name: super, image: "box:1", command: [sleep, "1000000"], securityContext: {seLinuxOptions: {type: spc_t}}}
  - {name: privileged, image: "box:1", command: [sleep, "1000000"], securityContext: {privileged: true}}
---
apiVersion: v1
kind: Pod
metadata: {name: unknown}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: box, image: "box:1", command: [sleep, "1000000"], securityContext: {seLinuxOptions: {type: nobody_t}}}]
`

// TestSELinux is run in a machine that enforces a policy: pods write to what is theirs, and to nothing else.
func TestSELinux(t *testing.T) {
	if on := read(t, "/sys/fs/selinux/enforce"); on != "1" {
		t.Fatalf("the policy is not enforced: %s", on)
	}
	for dir, context := range map[string]string{"/srv/host": "system_u:object_r:other_file_t:s0", "/srv/theirs": "system_u:object_r:container_file_t:s0:c1000,c1001"} {
		file := filepath.Join(dir, "file")
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("old\n"), 0o666); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{file, dir} {
			if err := unix.Setxattr(p, "security.selinux", []byte(context), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "kubeconfig"))
	settings := filepath.Join(t.TempDir(), "settings.yaml")
	if err := os.WriteFile(settings, []byte("seLinux: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "yare", "up", "--config", settings)
	t.Cleanup(func() {
		if t.Failed() {
			out, err := try(t, "", "kubectl", "get", "pods,events", "-o", "wide")
			t.Log(out, err)
			log, _ := os.ReadFile("/var/lib/yare/default/server.log")
			t.Logf("server log:\n%s", log[max(0, len(log)-6000):])
			out, _ = try(t, "", "sh", "-c", "dmesg | grep -i -e selinux -e avc | tail -n 40")
			t.Log(out)
		}
		run(t, "yare", "down")
	})
	run(t, "yare", "image", "build-from", busybox(t), "--tag", "box:1")
	feed(t, labelledPods, "kubectl", "apply", "-f", "-")
	run(t, "kubectl", "wait", "--for=condition=Ready", "pod/one", "pod/two", "pod/asked", "--timeout=100s")
	in := func(pod, container, script string) string {
		return strings.Join(strings.Fields(strings.ReplaceAll(run(t, "kubectl", "exec", pod, "-c", container, "--", "sh", "-c", script), "\x00", " ")), " ")
	}
	const label = "cat /proc/1/attr/current; echo; cat /proc/self/attr/current"
	one := in("one", "box", label)
	form := regexp.MustCompile(`^(system_u:system_r:container_t:s0:c\d+,c\d+) (\S+)$`).FindStringSubmatch(one)
	if form == nil || form[1] != form[2] {
		t.Errorf("a usual pod is under %s", one)
	}
	if other := in("one", "other", label); other != one {
		t.Errorf("containers of one pod are under %s and %s", one, other)
	}
	if two := in("two", "box", label); two == one {
		t.Errorf("two pods are under %s", two)
	}
	for _, c := range []struct{ container, want string }{
		{"box", "system_u:system_r:container_t:s0:c5,c6"}, {"super", "system_u:system_r:spc_t:s0:c5,c6"}, {"privileged", "system_u:system_r:base_t:s0"},
	} {
		if got := in("asked", c.container, label); got != c.want+" "+c.want {
			t.Errorf("container %s is under %s, want %s", c.container, got, c.want)
		}
	}
	const reach = `try() { (echo new >$1) 2>/dev/null && echo $1; }
for f in /own/file /own/file /tmp/file /dev/shm/file /etc/hosts /dev/termination-log /host/file /theirs/file /host/new; do try $f; done; cat /note/text`
	if got := in("one", "box", reach); got != "/own/file /own/file /tmp/file /dev/shm/file /etc/hosts /dev/termination-log read" {
		t.Errorf("a usual pod writes to %s", got)
	}
	if got := in("one", "other", "cat /own/file"); got != "new" {
		t.Errorf("the other container reads %q", got)
	}
	for _, dir := range []string{"/srv/host", "/srv/theirs"} {
		if got := read(t, dir, "file"); got != "old" {
			t.Errorf("%s was written: %s", dir, got)
		}
	}
	// All that is the container's own has its level, message queues too, whose file system takes no option for it.
	_, level, _ := strings.Cut(in("two", "box", label), ":s0:")
	level, _, _ = strings.Cut(level, " ")
	_, group := groups(t, "two")
	pid, _, _ := strings.Cut(read(t, root, group, "cgroup.procs"), "\n")
	for _, p := range []string{"", "bin/busybox", "dev", "dev/shm", "dev/mqueue", "dev/pts", "etc/hosts", "etc/hostname", "etc/resolv.conf"} {
		b := make([]byte, 200)
		n, err := unix.Getxattr(filepath.Join("/proc", pid, "root", p), "security.selinux", b)
		if got := strings.TrimRight(string(b[:max(n, 0)]), "\x00"); err != nil || got != "system_u:object_r:container_file_t:s0:"+level {
			t.Errorf("/%s has the context %q, %v, want level s0:%s", p, got, err, level)
		}
	}
	// Were it otherwise, they would be as other file systems.
	if out, err := try(t, "", "unshare", "-i", "mount", "-t", "mqueue", "-o", "context=system_u:object_r:container_file_t:s0", "mqueue", t.TempDir()); err == nil || !strings.Contains(out, "Invalid argument") {
		t.Errorf("message queues are mounted with a context: %v %s", err, out)
	}
	eventually(t, func() string {
		out := run(t, "kubectl", "get", "pod", "unknown", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.message}")
		if strings.Contains(out, "system_u:system_r:nobody_t:") && strings.Contains(out, "is not known to the host's policy") {
			return ""
		}
		return "the container of an unknown type says " + out
	})
}
