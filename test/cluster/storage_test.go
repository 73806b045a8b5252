package cluster_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const withClaims = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: keeps}
spec:
  serviceName: keeps
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: keeps}}
  template:
    metadata: {labels: {app: keeps}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: hello, image: "hello:1", volumeMounts: [{name: data, mountPath: /etc/hello}]}]
  volumeClaimTemplates:
  - {metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}
`

// TestStorage has pods with claims on a cluster with nothing installed. The server is killed while they come and go: no data is lost before the
// claims are deleted, and none is left afterwards.
func TestStorage(t *testing.T) {
	c := newCluster(t, "storage")
	c.hello()
	c.apply(withClaims)
	c.kubectl("rollout", "status", "statefulset/keeps", "--timeout=60s")
	said := func(i int) (text string) { // by the pod that there is, which may be about to go
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			var err error
			if text, err = c.tryKubectl("exec", fmt.Sprint("keeps-", i), "--", "/hello", "get", "http://127.0.0.1:8080/"); err == nil {
				return strings.TrimSpace(strings.SplitN(text, " from ", 2)[0])
			}
		}
		return text
	}
	for i := range 2 {
		v := c.kubectl("get", "pvc", fmt.Sprint("data-keeps-", i), "-o", "jsonpath={.spec.volumeName}")
		if err := os.WriteFile(filepath.Join(c.data, "volumes", "data", v, "greeting"), fmt.Append(nil, "volume ", i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The server is killed while they go, when one is gone, when one is made again, and when that has its node.
	for n, until := range [][]string{{}, {"delete"}, {"delete", "create"}, {"delete", "create", "condition=PodScheduled"}} {
		c.kubectl("delete", "pods", "-l", "app=keeps", "--wait=false")
		for _, state := range until {
			c.kubectl("wait", "pod/keeps-0", "--for="+state, "--timeout=60s")
		}
		if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.up()
		c.kubectl("rollout", "status", "statefulset/keeps", "--timeout=60s")
		for i := range 2 {
			if got, want := said(i), fmt.Sprint("volume ", i); got != want {
				t.Errorf("after kill %d: pod %d has %q", n, i, got)
			}
		}
	}
	// The servers after the first have read it from the database, and it is what was made.
	c.apply(withClaims)
	if got := c.kubectl("get", "statefulset", "keeps", "-o", "jsonpath={.metadata.generation}"); got != "1" {
		t.Errorf("what was applied again is generation %s", got)
	}
	c.kubectl("patch", "pvc", "data-keeps-0", "--type=merge", "-p", `{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`)
	c.kubectl("wait", "--for=jsonpath={.status.capacity.storage}=2Gi", "pvc/data-keeps-0", "--timeout=60s")
	c.kubectl("delete", "statefulset", "keeps")
	c.kubectl("delete", "pvc", "--all", "--wait=false")
	if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.up()
	c.kubectl("wait", "--for=delete", "pv", "--all", "--timeout=60s")
	left, err := filepath.Glob(filepath.Join(c.data, "volumes", "*", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
