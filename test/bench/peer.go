package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// errNoPeer says that upstream's programs were not built here: `make peers` does that.
var errNoPeer = errors.New("upstream's kube-apiserver is not built here")

// upstream starts upstream's etcd and kube-apiserver, with their defaults, from the cache of the peers' tests.
func upstream(ctx context.Context, b *bench) (*target, error) {
	if b.peer != nil {
		return b.peer, nil
	}
	programs, err := peerPrograms()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, "peer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	var running []*exec.Cmd
	b.endPeer = func() {
		for _, c := range running {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
		os.RemoveAll(dir)
	}
	start := func(name string, args ...string) error {
		log, err := os.Create(filepath.Join(dir, name+".log"))
		if err != nil {
			return err
		}
		defer log.Close()
		c := exec.Command(filepath.Join(programs, name), args...)
		c.Stdout, c.Stderr = log, log
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it must not outlive a bench that is killed
		if err := c.Start(); err != nil {
			return err
		}
		running = append(running, c)
		return nil
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	client, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	if err := start("etcd", "--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--log-level", "error"); err != nil {
		return nil, err
	}
	key, token, err := peerFiles(dir)
	if err != nil {
		return nil, err
	}
	if err := start("kube-apiserver", "--etcd-servers", client, "--secure-port", ports[2], "--bind-address", "127.0.0.1", "--cert-dir", filepath.Join(dir, "certs"),
		"--service-account-key-file", key, "--service-account-signing-key-file", key, "--service-account-issuer", "https://kubernetes.default.svc",
		"--token-auth-file", token, "--authorization-mode", "Node,RBAC", "--service-cluster-ip-range", "10.96.0.0/16"); err != nil {
		return nil, err
	}
	t := &target{config: &rest.Config{Host: "https://127.0.0.1:" + ports[2], BearerToken: "bench", QPS: -1, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}}
	t.pids = func() (pids []int, _ error) {
		for _, c := range running {
			pids = append(pids, c.Process.Pid)
		}
		return pids, nil
	}
	if t.client, err = kubernetes.NewForConfig(t.config); err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if _, err = t.client.CoreV1().Namespaces().Get(ctx, "kube-system", metav1.GetOptions{}); err == nil {
			break
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return nil, fmt.Errorf("upstream's kube-apiserver does not become ready: %w", err)
		}
	}
	b.peer = t
	return t, t.namespace()
}

// peerPrograms finds the folder of the newest build.
func peerPrograms() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	built, err := filepath.Glob(filepath.Join(cache, "yare-peers", "programs-*", "kube-apiserver"))
	if err != nil {
		return "", err
	}
	best, newest := "", time.Time{}
	for _, p := range built {
		if st, err := os.Stat(p); err == nil && st.ModTime().After(newest) {
			best, newest = filepath.Dir(p), st.ModTime()
		}
	}
	if best == "" {
		return "", errNoPeer
	}
	return best, nil
}

// peerFiles writes the key for service accounts' tokens, and an administrator's token.
func peerFiles(dir string) (key, token string, err error) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", "", err
	}
	key, token = filepath.Join(dir, "sa.key"), filepath.Join(dir, "tokens.csv")
	b := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})
	return key, token, errors.Join(os.WriteFile(key, b, 0o600), os.WriteFile(token, []byte("bench,bench,bench,\"system:masters\"\n"), 0o600))
}

func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		_, port, _ := strings.Cut(l.Addr().String(), ":")
		ports = append(ports, port)
	}
	return ports, nil
}
