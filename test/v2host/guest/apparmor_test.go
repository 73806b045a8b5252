//go:build guest

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const guestProfile = `profile guest-profile flags=(attach_disconnected) {
  file,
  network,
  capability,
  signal,
  ptrace,
  umount,
  deny /secret/** w,
}
`

const confinedPods = `
apiVersion: v1
kind: Pod
metadata: {name: usual}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: box, image: "box:1", command: [sh, -c, 'mkdir /secret; exec sleep 1000000']}]
---
apiVersion: v1
kind: Pod
metadata: {name: free}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: box, image: "box:1", command: [sleep, "1000000"], securityContext: {appArmorProfile: {type: Unconfined}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: privileged}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: box, image: "box:1", command: [sleep, "1000000"], securityContext: {privileged: true}}]
---
apiVersion: v1
kind: Pod
metadata: {name: named}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {appArmorProfile: {type: Localhost, localhostProfile: guest-profile}}
  containers:
  - {name: box, image: "box:1", command: [sh, -c, 'mkdir /secret; echo >/secret/a; exec sleep 1000000']}
  - {name: other, image: "box:1", command: [sleep, "1000000"], securityContext: {appArmorProfile: {type: RuntimeDefault}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: annotated
  annotations: {container.apparmor.security.beta.kubernetes.io/box: localhost/guest-profile}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: box, image: "box:1", command: [sleep, "1000000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: unknown}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: box, image: "box:1", command: [sleep, "1000000"], securityContext: {appArmorProfile: {type: Localhost, localhostProfile: nowhere}}}]
`

// TestAppArmor is run in a machine with AppArmor's compiler: pods are held to their profiles, the first process and those of exec alike.
func TestAppArmor(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "kubeconfig"))
	const list = "/sys/kernel/security/apparmor/profiles"
	feed(t, guestProfile, "/sbin/apparmor_parser", "--replace", "--skip-cache")
	run(t, "yare", "up")
	t.Cleanup(func() {
		if t.Failed() {
			out, err := try(t, "", "kubectl", "get", "pods,events", "-o", "wide")
			t.Log(out, err)
			log, _ := os.ReadFile("/var/lib/yare/default/server.log")
			t.Logf("server log:\n%s", log[max(0, len(log)-6000):])
		}
		run(t, "yare", "down")
		if now := read(t, list); strings.Contains(now, "yare-default") || !strings.Contains(now, "guest-profile") {
			t.Errorf("profiles after the cluster: %s", now)
		}
	})
	run(t, "yare", "image", "build-from", busybox(t), "--tag", "box:1")
	feed(t, confinedPods, "kubectl", "apply", "-f", "-")
	run(t, "kubectl", "wait", "--for=condition=Ready", "pod/usual", "pod/free", "pod/privileged", "pod/named", "pod/annotated", "--timeout=100s")
	const label = "sed 's/ .*//' /proc/1/attr/current; sed 's/ .*//' /proc/self/attr/current; "
	for _, c := range []struct{ pod, container, script, want string }{
		{"usual", "box", label + "echo >/secret/a && echo written", "yare-default yare-default written"},
		{"free", "box", label, "unconfined unconfined"},
		{"privileged", "box", label, "unconfined unconfined"},
		{"named", "box", label + "test -e /secret/a || echo missing; (echo >/secret/b) 2>/dev/null || echo refused", "guest-profile guest-profile missing refused"},
		{"named", "other", label, "yare-default yare-default"},
		{"annotated", "box", label, "guest-profile guest-profile"},
	} {
		if got := strings.Join(strings.Fields(run(t, "kubectl", "exec", c.pod, "-c", c.container, "--", "sh", "-c", c.script)), " "); got != c.want {
			t.Errorf("pod %s, container %s: %s, want %s", c.pod, c.container, got, c.want)
		}
	}
	if out := run(t, "kubectl", "get", "pod", "annotated", "-o", "jsonpath={.spec.containers[0].securityContext.appArmorProfile}"); out != `{"localhostProfile":"guest-profile","type":"Localhost"}` {
		t.Errorf("the annotation became %s", out)
	}
	eventually(t, func() string {
		out := run(t, "kubectl", "get", "pod", "unknown", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.message}")
		if strings.Contains(out, `AppArmor profile "nowhere": it is not loaded on this host`) {
			return ""
		}
		return "the container with an unknown profile says " + out
	})
	// An administrator's tool removed the profile; the next container has it again.
	if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte("yare-default"), 0); err != nil {
		t.Fatal(err)
	}
	run(t, "kubectl", "delete", "pod", "usual", "--now")
	feed(t, confinedPods[:strings.Index(confinedPods, "---")], "kubectl", "apply", "-f", "-")
	run(t, "kubectl", "wait", "--for=condition=Ready", "pod/usual", "--timeout=100s")
	if out := run(t, "kubectl", "exec", "usual", "--", "cat", "/proc/1/attr/current"); !strings.HasPrefix(out, "yare-default (enforce)") {
		t.Errorf("after its removal: %s", out)
	}
}
