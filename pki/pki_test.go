package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func config() Config {
	return Config{
		Names:          []string{"api.example.org"},
		Addresses:      []netip.Addr{netip.MustParseAddr("192.0.2.10")},
		ServiceAddress: netip.MustParseAddr("10.43.0.1"),
		NodeName:       "n1",
		NodeAddresses:  []netip.Addr{netip.MustParseAddr("192.0.2.11")},
	}
}

func ensure(t *testing.T, dir string, c Config) *PKI {
	t.Helper()
	p, err := Ensure(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	m := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m[e.Name()] = data
	}
	return m
}

func changed(before, after map[string][]byte) (names []string) {
	for name, data := range after {
		if !bytes.Equal(before[name], data) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func TestEnsureIsIdempotentAndPrivate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "pki")
	ensure(t, dir, config())
	before := files(t, dir)
	ensure(t, dir, config())
	if c := changed(before, files(t, dir)); len(c) > 0 {
		t.Errorf("a second Ensure changed %v", c)
	}
	for name := range before {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want := os.FileMode(0o600)
		if name == "ca.crt" || name == "etcd-ca.crt" || name == "sa.pub" {
			want = 0o644
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, st.Mode().Perm(), want)
		}
	}
}

func TestSubjects(t *testing.T) {
	t.Parallel()
	p := ensure(t, t.TempDir(), config())
	for _, c := range []struct {
		id     *Identity
		user   string
		groups []string
	}{
		{p.Admin, "kubernetes-admin", []string{"system:masters"}},
		{p.KubeletClient, "kube-apiserver-kubelet-client", []string{"system:masters"}},
		{p.Controllers, "system:kube-controller-manager", nil},
		{p.Scheduler, "system:kube-scheduler", nil},
		{p.Proxy, "system:kube-proxy", nil},
		{p.Kubelet, "system:node:n1", []string{"system:nodes"}},
	} {
		leaf := c.id.Certificate().Leaf
		if leaf.Subject.CommonName != c.user || !slices.Equal(leaf.Subject.Organization, c.groups) {
			t.Errorf("%s: got %v %v, want %v %v", c.id.name, leaf.Subject.CommonName, leaf.Subject.Organization, c.user, c.groups)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: p.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", c.id.name, err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: p.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
			t.Errorf("%s may serve", c.id.name)
		}
	}
	// Who may speak for others is of an authority of its own, and nobody else is.
	front := p.ProxyClient.Certificate().Leaf
	if err := front.CheckSignatureFrom(p.FrontProxy.cert); err != nil || front.Subject.CommonName != ProxyClientName {
		t.Errorf("front proxy's client %q: %v", front.Subject.CommonName, err)
	}
	if front.CheckSignatureFrom(p.CA.cert) == nil || p.Admin.Certificate().Leaf.CheckSignatureFrom(p.FrontProxy.cert) == nil {
		t.Error("the front proxy's authority is the cluster's")
	}
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "10.43.0.1", "192.0.2.10", "api.example.org",
		"kubernetes", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"} {
		if err := p.Server.Certificate().Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	for _, host := range []string{"n1", "192.0.2.11"} {
		if err := p.KubeletServing.Certificate().Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	p := ensure(t, t.TempDir(), config())
	a, b := net.Pipe()
	server := tls.Server(a, p.ServerTLS(p.Server))
	config := p.ClientTLS(p.Admin)
	config.ServerName = "kubernetes"
	client := tls.Client(b, config)
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := server.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "kubernetes-admin" {
		t.Errorf("the server sees %q", got)
	}
}

// TestReissue checks which files follow a change, and that nothing else does.
func TestReissue(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, dir string, c *Config)
		want   []string
	}{
		{"an address changed", func(_ *testing.T, _ string, c *Config) {
			c.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.99")}
		}, []string{"etcd-peer.pem", "server.pem"}},
		{"the node's name changed", func(_ *testing.T, _ string, c *Config) { c.NodeName = "n2" },
			[]string{"kubelet-serving.pem", "kubelet.pem"}},
		{"order does not matter", func(_ *testing.T, _ string, c *Config) {
			c.Names = []string{"api.example.org", "api.example.org"}
		}, nil},
		{"a file is missing", func(t *testing.T, dir string, _ *Config) { remove(t, dir, "admin.pem") },
			[]string{"admin.pem"}},
		{"a file is cut off", func(t *testing.T, dir string, _ *Config) { truncate(t, dir, "proxy.pem") },
			[]string{"proxy.pem"}},
		{"derived files are missing", func(t *testing.T, dir string, _ *Config) {
			remove(t, dir, "ca.crt")
			remove(t, dir, "sa.pub")
		}, nil},
		{"a certificate of another authority", func(t *testing.T, dir string, _ *Config) {
			other := t.TempDir()
			ensure(t, other, config())
			data, err := os.ReadFile(filepath.Join(other, "scheduler.pem"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "scheduler.pem"), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"scheduler.pem"}},
		{"the front proxy's certificate is of the cluster's authority", func(t *testing.T, dir string, _ *Config) {
			p := ensure(t, dir, config())
			key, cert, err := p.CA.Issue(Request{User: ProxyClientName})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "front-proxy-client.pem"), append(key, cert...), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"front-proxy-client.pem"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, conf := t.TempDir(), config()
			ensure(t, dir, conf)
			before := files(t, dir)
			c.damage(t, dir, &conf)
			ensure(t, dir, conf)
			after := files(t, dir)
			if got := changed(before, after); !slices.Equal(got, c.want) {
				t.Errorf("rewrote %v, want %v", got, c.want)
			}
			if len(after) != len(before) {
				t.Errorf("have %d files, had %d", len(after), len(before))
			}
		})
	}
}

// TestCrashBetweenFiles stops after every prefix of the files that a first start writes, leaves a half-written
// temporary file behind as well, and expects the next start to complete the set around the same CA.
func TestCrashBetweenFiles(t *testing.T) {
	t.Parallel()
	whole := t.TempDir()
	ensure(t, whole, config())
	order := []string{"ca.pem", "front-proxy-ca.pem", "etcd-ca.pem", "sa.pem", "ca.crt", "etcd-ca.crt", "sa.pub", "server.pem", "front-proxy-client.pem",
		"etcd-peer.pem", "kubelet-client.pem", "admin.pem",
		"controllers.pem", "scheduler.pem", "proxy.pem", "kubelet.pem", "kubelet-serving.pem"}
	content := files(t, whole)
	if len(content) != len(order)+1 { // and the lock
		t.Fatalf("the list of files is out of date: %d", len(content))
	}
	for n := range order {
		dir := t.TempDir()
		for _, name := range order[:n] {
			if err := os.WriteFile(filepath.Join(dir, name), content[name], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, ".x.pem.123"), content[order[n]][:10], 0o600); err != nil {
			t.Fatal(err)
		}
		p := ensure(t, dir, config())
		if n > 0 && !bytes.Equal(p.CA.PEM(), content["ca.crt"]) {
			t.Errorf("after %d files: another authority", n)
		}
		if c := changed(content, files(t, dir)); n > 7 && slices.Contains(c, "server.pem") {
			t.Errorf("after %d files: server re-issued", n)
		}
		if _, err := os.Stat(filepath.Join(dir, ".x.pem.123")); err == nil {
			t.Errorf("after %d files: the temporary file is still there", n)
		}
	}
}

func TestDamagedRootsAreNotReplaced(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ca.pem", "front-proxy-ca.pem", "etcd-ca.pem", "sa.pem"} {
		dir := t.TempDir()
		ensure(t, dir, config())
		truncate(t, dir, name)
		if _, err := Ensure(dir, config()); err == nil {
			t.Errorf("%s was replaced", name)
		}
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := ensure(t, dir, config())
		first := p.Server.Certificate()
		if got := time.Since(first.Leaf.NotBefore); got < skew {
			t.Errorf("a certificate starts %v ago", got)
		}
		next, err := p.Renew()
		if err != nil {
			t.Fatal(err)
		}
		if p.Server.Certificate() != first {
			t.Error("renewed at once")
		}
		time.Sleep(next + time.Minute)
		if _, err := p.Renew(); err != nil {
			t.Fatal(err)
		}
		second, _ := p.Server.GetCertificate(nil)
		if !second.Leaf.NotAfter.After(first.Leaf.NotAfter) {
			t.Error("not renewed")
		}
		// Near the CA's end certificates are cut short, and that is not a reason to renew them each time.
		time.Sleep(authorityLife - time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) - 24*time.Hour)
		p = ensure(t, dir, config())
		last := p.Server.Certificate().Leaf
		if ensure(t, dir, config()).Server.Certificate().Leaf.SerialNumber.Cmp(last.SerialNumber) != 0 {
			t.Error("renewed without need")
		}
		time.Sleep(48 * time.Hour)
		if _, err := Ensure(dir, config()); err == nil {
			t.Error("an expired authority was accepted")
		}
	})
}

func TestRenewer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := ensure(t, dir, config())
		first := p.Server.Certificate().Leaf
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Renewer(slog.New(slog.NewTextHandler(t.Output(), nil))).Run(ctx, func() {}) }()
		time.Sleep(5 * leafLife)
		if last := p.Server.Certificate().Leaf; time.Now().After(last.NotAfter) || !last.NotAfter.After(first.NotAfter) {
			t.Errorf("after five years the certificate ends %v", last.NotAfter)
		}
		if err := p.Server.Certificate().Leaf.CheckSignatureFrom(p.CA.cert); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestConcurrentEnsure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cas := make(chan []byte, 4)
	for range cap(cas) {
		go func() {
			p, err := Ensure(dir, config())
			if err != nil {
				t.Error(err)
				cas <- nil
				return
			}
			cas <- p.CA.PEM()
		}()
	}
	first := <-cas
	for range cap(cas) - 1 {
		if !bytes.Equal(first, <-cas) {
			t.Error("two authorities")
		}
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Truncate(filepath.Join(dir, name), 40); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkEnsure(b *testing.B) {
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			if _, err := Ensure(b.TempDir(), config()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		dir := b.TempDir()
		for b.Loop() {
			if _, err := Ensure(dir, config()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
