package main

import (
	"context"
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/pod-security-admission/test"
)

var (
	program    = flag.String("yare", "", "program under test")
	kubeconfig = flag.String("kubeconfig", "", "test this cluster instead of a server of our own")
)

// TestPodSecurity has a subtest for each level, version and check.
func TestPodSecurity(t *testing.T) {
	file := *kubeconfig
	if file == "" {
		if *program == "" {
			t.Fatal("say which program to test: -yare, or -kubeconfig for a cluster that runs")
		}
		file = serve(t, *program)
	}
	test.Run(t, test.Options{ClientConfig: await(t, file)})
}

// serve starts an API server that is gone when the test is, and returns its administrator's kubeconfig.
func serve(t *testing.T, program string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(program, "apiserver", "--ephemeral", "--data-dir", dir, "--secure-port", strconv.Itoa(port), "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server ended: %v", err)
		}
	})
	return filepath.Join(dir, "admin.kubeconfig")
}

// ready is for how long a server may take to be made.
const ready = time.Minute

// await waits until the server answers, and returns how it is reached.
func await(t *testing.T, kubeconfig string) *rest.Config {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ready)
	defer cancel()
	for {
		config, err := ask(ctx, kubeconfig)
		if err == nil {
			return config
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the server is not ready: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func ask(ctx context.Context, kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // the suite sends thousands of requests
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return config, c.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}
