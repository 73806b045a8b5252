package cluster_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKubectl goes through what people do with kubectl, with a binary that is not ours.
func TestKubectl(t *testing.T) {
	c := newCluster(t, "kubectl")
	c.hello()
	c.kubectl("apply", "-f", "../../examples/hello/hello.yaml")
	c.kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
	c.kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=hello", "--timeout=60s")
	c.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
	// What the example says is what is stored, so that applying it again has nothing to do, and server-side nobody to wrest it from.
	for line := range strings.Lines(c.kubectl("apply", "-f", "../../examples/hello/hello.yaml")) {
		if !strings.HasSuffix(strings.TrimSpace(line), " unchanged") {
			t.Errorf("applied again: %s", line)
		}
	}
	c.kubectl("apply", "--server-side", "--dry-run=server", "-f", "../../examples/hello/hello.yaml")
	pod := c.kubectl("get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[0].metadata.name}")

	// Each runs on the objects above and must print what is wanted.
	for _, tt := range []struct {
		args string
		want []string
	}{
		{"get pods -o wide", []string{"NAME", "READY", "IP", "NODE", "client", "1/1", "Running"}},
		{"get deployment hello", []string{"UP-TO-DATE", "3/3"}},
		{"get all", []string{"pod/client", "service/hello", "deployment.apps/hello", "replicaset.apps/hello-"}},
		{"get deployment hello -o yaml", []string{"apiVersion: apps/v1", "replicas: 3", "availableReplicas: 3"}},
		{"get pods -o json", []string{`"kind": "List"`, `"phase": "Running"`}},
		{"get nodes", []string{"Ready"}},
		{"get events", []string{"Scheduled", "Started"}},
		{"get configmap hello -o jsonpath={.data.greeting}", []string{"Hello"}},
		{"get pods --field-selector status.phase=Running -l app=hello -o name", []string{"pod/hello-"}},
		{"get pods --sort-by=.metadata.name -o custom-columns=N:.metadata.name", []string{"client"}},
		{"describe pod client", []string{"Image:", "hello:1", "Events:", "Scheduled"}},
		{"describe node", []string{"Allocatable:", "cpu", "Non-terminated Pods"}},
		{"describe service hello", []string{"Endpoints:", ":8080"}},
		{"describe deployment hello", []string{"RollingUpdateStrategy", "NewReplicaSet"}},
		{"logs " + pod, []string{"hello listens on :8080"}},
		{"logs deployment/hello --all-containers --tail=1 --timestamps", []string{"hello"}},
		{"exec client -- /hello get http://hello/", []string{"Hello from hello-"}},
		{"exec client -- /hello get http://hello.default.svc.cluster.local/", []string{"Hello from hello-"}},
		{"auth can-i create pods", []string{"yes"}},
		{"auth can-i --list", []string{"*.*"}},
		{"auth whoami", []string{"system:masters"}},
		{"api-resources", []string{"deployments", "apps/v1", "configmaps", "cm"}},
		{"api-versions", []string{"apps/v1", "v1"}},
		{"explain deployment.spec.strategy", []string{"FIELD: strategy", "rollingUpdate"}},
		{"explain pod.spec.containers.image", []string{"Container image name"}},
		{"version", []string{"Server Version: v1.37"}},
		{"cluster-info", []string{"is running at"}},
		{"label pod client role=asks", []string{"labeled"}},
		{"annotate pod client note=x", []string{"annotated"}},
		{"patch deployment hello -p {\"spec\":{\"template\":{\"spec\":{\"terminationGracePeriodSeconds\":5}}}}", []string{"patched"}},
		{"rollout status deployment/hello --timeout=60s", []string{"successfully rolled out"}},
		{"patch deployment hello --type=json -p [{\"op\":\"replace\",\"path\":\"/spec/revisionHistoryLimit\",\"value\":3}]", []string{"patched"}},
		{"patch deployment hello --type=merge -p {\"metadata\":{\"annotations\":{\"a\":\"b\"}}}", []string{"patched"}},
		{"set env deployment/hello VERSION=2", []string{"env updated"}},
		{"rollout status deployment/hello --timeout=60s", []string{"successfully rolled out"}},
		{"exec deploy/hello -- /hello get http://127.0.0.1:8080/", []string{"version 2"}},
		{"rollout history deployment/hello", []string{"REVISION", "3"}},
		{"rollout undo deployment/hello", []string{"rolled back"}},
		{"rollout status deployment/hello --timeout=60s", []string{"successfully rolled out"}},
		{"exec deploy/hello -- /hello get http://127.0.0.1:8080/", []string{"version 1"}},
		{"rollout pause deployment/hello", []string{"paused"}},
		{"rollout resume deployment/hello", []string{"resumed"}},
		{"rollout restart deployment/hello", []string{"restarted"}},
		{"rollout status deployment/hello --timeout=60s", []string{"successfully rolled out"}},
		{"patch deployment hello -p {\"spec\":{\"template\":{\"spec\":{\"hostUsers\":false}}}}", []string{"patched"}},
		{"rollout status deployment/hello --timeout=60s", []string{"successfully rolled out"}},
		{"exec deploy/hello -- /hello get http://hello/", []string{"Hello from hello-"}}, // with the greeting of a volume
		{"rollout undo deployment/hello", []string{"rolled back"}},
		{"rollout status deployment/hello --timeout=60s", []string{"successfully rolled out"}},
		{"scale deployment hello --replicas=1", []string{"scaled"}},
		{"wait --for=jsonpath={.status.replicas}=1 deployment/hello --timeout=60s", []string{"condition met"}},
		{"apply --server-side -f ../../examples/hello/hello.yaml --force-conflicts", []string{"serverside-applied"}},
		{"diff -f ../../examples/hello/hello.yaml", nil},
		{"create token default", []string{"."}},
		{"run once --image=hello:1 --restart=Never --command -- /hello get http://hello/", []string{"created"}},
		{"wait --for=jsonpath={.status.phase}=Succeeded pod/once --timeout=60s", []string{"condition met"}},
		{"logs once", []string{"Hello from"}},
		{"delete pod once", []string{"deleted"}},
		{"get --raw /readyz", []string{"ok"}},
	} {
		args := splitArgs(tt.args)
		begin := time.Now()
		out := c.kubectl(args...)
		t.Logf("%4d ms  kubectl %s", time.Since(begin).Milliseconds(), tt.args)
		for _, w := range tt.want {
			if !strings.Contains(out, w) {
				t.Errorf("kubectl %s: no %q in\n%s", tt.args, w, out)
			}
		}
	}

	// No is told by the exit code too.
	if out, err := c.tryKubectl("auth", "can-i", "list", "secrets", "--as", "system:serviceaccount:default:default"); err == nil || !strings.Contains(out, "no") {
		t.Errorf("a service account lists secrets: %v %s", err, out)
	}
	t.Run("edit", func(t *testing.T) { editAnObject(t, c) })
	t.Run("logs -f", func(t *testing.T) { followLogs(t, c) })
	t.Run("exec -it", func(t *testing.T) { execTTY(t, c) })
	t.Run("cp", func(t *testing.T) { copyFiles(t, c) })
	t.Run("port-forward", func(t *testing.T) { forwardPort(t, c) })
	t.Run("yare kubectl ends when it is told to", func(t *testing.T) { endKubectl(t, c) })

	c.kubectl("delete", "-f", "../../examples/hello/hello.yaml", "--timeout=60s")
	c.kubectl("wait", "--for=delete", "pod", "-l", "app=hello", "--timeout=60s")
	if out := c.kubectl("get", "pods,services,deployments,replicasets,endpointslices", "-o", "name"); strings.Contains(out, "hello") || strings.Contains(out, "pod/") {
		t.Errorf("left after delete:\n%s", out)
	}
}

// splitArgs splits at spaces that are not within braces or brackets.
func splitArgs(s string) []string {
	depth := 0
	return strings.FieldsFunc(s, func(r rune) bool {
		switch r {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		return r == ' ' && depth == 0
	})
}

func editAnObject(t *testing.T, c *cluster) {
	cmd := exec.Command(bin.kubectl, "--kubeconfig", c.kubeconfig, "edit", "configmap", "hello")
	cmd.Env = append(os.Environ(), "KUBE_EDITOR=sed -i s/Hello/Ahoy/")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "edited") {
		t.Fatalf("%v: %s", err, out)
	}
	// The volume follows without a restart.
	deadline := time.Now().Add(90 * time.Second)
	for {
		out, err := c.tryKubectl("exec", "deploy/hello", "--", "/hello", "get", "http://127.0.0.1:8080/")
		if err == nil && strings.HasPrefix(out, "Ahoy") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the mounted ConfigMap did not change: %v %s", err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func followLogs(t *testing.T, c *cluster) {
	cmd := exec.Command(bin.kubectl, "--kubeconfig", c.kubeconfig, "logs", "-f", "client", "--tail=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	c.kubectl("exec", "client", "--", "/hello", "get", "http://127.0.0.1:8080/follow-me")
	found := make(chan error, 1)
	go func() {
		var all []byte
		buf := make([]byte, 4096)
		for !bytes.Contains(all, []byte("follow-me")) {
			n, err := out.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				found <- fmt.Errorf("%w: %s", err, all)
				return
			}
		}
		found <- nil
	}()
	select {
	case err := <-found:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the line did not come")
	}
}

func execTTY(t *testing.T, c *cluster) {
	// script(1) gives kubectl a terminal.
	cmd := exec.Command("script", "-qec", bin.kubectl+" --kubeconfig "+c.kubeconfig+" exec -it client -- /hello get http://hello/", "/dev/null")
	cmd.Stdin = strings.NewReader("")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "from hello-") {
		t.Errorf("%v: %s", err, out)
	}
	// Exit codes come through.
	err = exec.Command(bin.kubectl, "--kubeconfig", c.kubeconfig, "exec", "client", "--", "/hello", "nonsense").Run()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 2 {
		t.Errorf("exit code 2 came as %v", err)
	}
}

// copyFiles needs a container with tar: busybox.
func copyFiles(t *testing.T, c *cluster) {
	c.busybox()
	c.apply(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"box"},"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"box","image":"busybox:1","command":["sleep","3600"]}]}}`)
	c.kubectl("wait", "--for=condition=Ready", "pod/box", "--timeout=60s")
	from, back := filepath.Join(c.dir, "from"), filepath.Join(c.dir, "back")
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	if err := os.WriteFile(from, want, 0o644); err != nil {
		t.Fatal(err)
	}
	c.kubectl("cp", from, "box:/tmp/there")
	c.kubectl("cp", "box:/tmp/there", back)
	got, err := os.ReadFile(back)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v: %d bytes came back of %d", err, len(got), len(want))
	}
	os.Remove(from)
	os.Remove(back)
	c.kubectl("delete", "pod", "box")
}

func forwardPort(t *testing.T, c *cluster) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	cmd := exec.Command(bin.kubectl, "--kubeconfig", c.kubeconfig, "port-forward", "-v=6", "service/hello", fmt.Sprintf("%d:80", port))
	var told bytes.Buffer // what it does on the way; read after its end
	cmd.Stderr = &told
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if text := told.String(); strings.Contains(text, "fallback") || !strings.Contains(text, "101 Switching Protocols") {
			t.Errorf("the port was not forwarded over WebSocket:\n%s", text)
		}
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil { // "Forwarding from ..."
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	for range 5 {
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if !strings.Contains(string(b), "from hello-") {
			t.Errorf("%s: %s", r.Status, b)
		}
	}
}

// endKubectl checks that the kubectl inside our program takes signals as the one outside does.
func endKubectl(t *testing.T, c *cluster) {
	cmd := exec.Command(bin.yare, "kubectl", "--kubeconfig", c.kubeconfig, "proxy", "--port=0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // "Starting to serve on ..."
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	kill := time.AfterFunc(5*time.Second, func() {
		t.Error("it goes on after SIGTERM")
		cmd.Process.Kill()
	})
	defer kill.Stop()
	if err := cmd.Wait(); err == nil {
		t.Error("it ended as if by itself")
	}
}

// busybox makes the image busybox:1 from Debian's busybox-static.
func (c *cluster) busybox() {
	c.t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		c.t.Fatal("busybox-static is needed: run make setup")
	}
	root := filepath.Join(c.dir, "busybox")
	for _, d := range []string{"bin", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			c.t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "busybox"), b, 0o755); err != nil {
		c.t.Fatal(err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	c.yare("image", "build-from", root, "--name", c.name, "--tag", "busybox:1", "--cmd", "sh")
	os.RemoveAll(root)
}

// status is what `yare status -o json` says, as far as tests read it.
type status struct {
	Running bool `json:"running"`
	PID     int  `json:"pid"`
}

func (c *cluster) status() status {
	c.t.Helper()
	var s status
	out := c.yare("status", "--name", c.name, "-o", "json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
	return s
}
