package cluster_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBadInput gives the cluster what people get wrong. Each error must name the thing and, where there is one, the mend.
func TestBadInput(t *testing.T) {
	c := newCluster(t, "errors")
	for _, tt := range []struct {
		name, manifest string
		want           []string
	}{
		{"malformed YAML", "kind: Pod\n  metadata: [", []string{"error", "yaml: line 2"}},
		{"unknown kind", "apiVersion: v1\nkind: Pood\nmetadata: {name: a}", []string{`no matches for kind "Pood" in version "v1"`}},
		{"unknown field", pod("a", `restartPolicee: Never`), []string{`unknown field "spec.restartPolicee"`}},
		{"wrong type", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: [1]", []string{"data"}},
		{"wrong type of a number", deployment("a", "many", "a"), []string{"spec.replicas"}},
		{"missing containers", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}", []string{"spec.containers: Required value"}},
		{"missing image", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}", []string{"spec.containers[0].image: Required value"}},
		{"name out of form", pod("A_b", ""), []string{`metadata.name: Invalid value: "A_b"`, "RFC 1123"}},
		{"label out of form", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {x: 'a b'}}", []string{"metadata.labels", `"a b"`}},
		{"selector does not match", deployment("a", "1", "b"), []string{"spec.template.metadata.labels", "`selector` does not match template `labels`"}},
		{"invalid policy", pod("a", "restartPolicy: Sometimes"), []string{`spec.restartPolicy: Unsupported value: "Sometimes"`, `"Always"`}},
		{"missing namespace", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: nowhere}", []string{`namespaces "nowhere" not found`}},
		{"port out of range", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 70000}]}", []string{"spec.ports[0].port: Invalid value: 70000"}},
		{"address taken", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 1.2.3.4, ports: [{port: 80}]}", []string{"spec.clusterIP", "1.2.3.4"}},
		{"bad quantity", pod("a", "", "resources: {limits: {memory: lots}}"), []string{"quantities"}},
		{"request above limit", pod("a", "", "resources: {limits: {memory: 1Mi}, requests: {memory: 2Mi}}"), []string{"spec.containers[0].resources.requests", "must be less than or equal to memory limit"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := c.input(tt.manifest, "create", "--validate=strict", "-f", "-")
			if err == nil {
				t.Fatalf("it was accepted: %s", out)
			}
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					t.Errorf("no %q in: %s", w, out)
				}
			}
		})
	}
	t.Run("field twice", func(t *testing.T) {
		// Sent as it is: kubectl itself takes the last of two equal YAML keys.
		out, err := c.input(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"a","k":"b"}}`,
			"create", "--raw", "/api/v1/namespaces/default/configmaps?fieldValidation=Strict", "-f", "-")
		if err == nil || !strings.Contains(out, `duplicate field "data.k"`) {
			t.Errorf("%v: %s", err, out)
		}
	})
	if out := c.kubectl("get", "pods,deployments,configmaps", "-o", "name"); strings.Contains(out, "/a") {
		t.Errorf("something bad was stored: %s", out)
	}

	t.Run("image that is nowhere", func(t *testing.T) {
		c.apply(strings.Replace(pod("noimage", ""), "hello:1", "127.0.0.1:1/none:1", 1))
		c.kubectl("wait", "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImagePull", "pod/noimage", "--timeout=30s")
		out := c.kubectl("describe", "pod", "noimage")
		if !strings.Contains(out, "127.0.0.1:1/none:1") || !strings.Contains(out, "connection refused") {
			t.Errorf("the reason is not told:\n%s", out)
		}
		c.kubectl("delete", "pod", "noimage", "--timeout=30s")
	})
	t.Run("second up", func(t *testing.T) {
		if out := c.up(); !strings.Contains(out, "already runs") {
			t.Error(out)
		}
	})
	t.Run("second cluster on the same data", func(t *testing.T) {
		out, err := c.run(10*time.Second, bin.yare, "up", "--name", "thief", "--data-dir", c.data)
		if err == nil || !strings.Contains(out, `is used by cluster "errors"`) {
			t.Error(err, out)
		}
	})
}

// TestBadCommands needs no cluster.
func TestBadCommands(t *testing.T) {
	taken, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		want []string
	}{
		{"up --name Bad_Name", []string{"Bad_Name", "lower-case"}},
		{"up --name taken --api-port " + port, []string{"port " + port + " is in use", "--api-port"}},
		{"up --name full --data-dir " + full, []string{full, "not empty"}},
		{"up --name nodir --data-dir /dev/null/x", []string{"/dev/null"}},
		{"down --name nosuch", []string{`"nosuch"`, "yare up"}},
		{"status --name nosuch", []string{`"nosuch"`}},
		{"image ls --name nosuch", []string{`"nosuch"`}},
		{"server --config /nowhere.yaml", []string{"/nowhere.yaml"}},
		{"frobnicate", []string{"frobnicate"}},
	} {
		out, err := exec.Command(bin.yare, strings.Fields(tt.args)...).CombinedOutput()
		if err == nil {
			t.Errorf("yare %s succeeded: %s", tt.args, out)
		}
		for _, w := range tt.want {
			if !strings.Contains(string(out), w) {
				t.Errorf("yare %s: no %q in: %s", tt.args, w, out)
			}
		}
		if strings.Contains(string(out), "goroutine ") {
			t.Errorf("yare %s panicked: %s", tt.args, out)
		}
	}
	cmd := exec.Command(bin.yare, "up", "--name", "noroot")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "run it as root") {
		t.Errorf("without root: %v %s", err, out)
	}
}

// TestDiskFull fills the disk under a running cluster: reads go on, writes say why not, and all is well when there is space again.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	c := newClusterAt(t, "diskfull", filepath.Join(dir, "data"))
	c.kubectl("create", "configmap", "before", "--from-literal=k=v")
	ballast := filepath.Join(dir, "ballast")
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+ballast, "bs=1M").CombinedOutput(); err == nil {
		t.Fatalf("the disk is not full: %s", out)
	}
	// What etcd has set aside for its log takes some writes yet; then they are refused.
	refused := false
	for i := 0; i < 200 && !refused; i++ {
		out, err := c.tryKubectl("create", "configmap", "during-"+strconv.Itoa(i), "--from-literal=k="+strings.Repeat("x", 100<<10))
		if refused = err != nil; refused && !strings.Contains(out, "no space left") {
			t.Errorf("a write on the full disk: %s", out)
		}
	}
	if !refused {
		t.Error("writes were never refused")
	}
	if got := c.kubectl("get", "configmap", "before", "-o", "jsonpath={.data.k}"); got != "v" {
		t.Errorf("read: %q", got)
	}
	c.kubectl("delete", "configmap", "before")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		out, err := c.tryKubectl("create", "configmap", "after", "--from-literal=k=v")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no recovery: %s", out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func pod(name, spec string, container ...string) string {
	m := "apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + name + "\nspec:\n  containers:\n  - name: a\n    image: hello:1\n"
	for _, l := range container {
		m += "    " + l + "\n"
	}
	if spec != "" {
		m += "  " + spec + "\n"
	}
	return m
}

func deployment(name, replicas, label string) string {
	return "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: " + name + "}\nspec:\n  replicas: " + replicas +
		"\n  selector: {matchLabels: {app: a}}\n  template:\n    metadata: {labels: {app: " + label + "}}\n    spec: {containers: [{name: a, image: hello:1}]}\n"
}
