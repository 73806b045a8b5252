package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/pki"
)

// What a server that joins has of the cluster: its keys, its settings with the files that they name, and nothing of the other machine.
func TestPrepare(t *testing.T) {
	t.Parallel()
	there := t.TempDir()
	first, err := pki.Ensure(filepath.Join(there, "pki"), pki.Config{})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := first.Shared()
	if err != nil {
		t.Fatal(err)
	}
	encryption := filepath.Join(there, "encryption.yaml")
	if err := os.WriteFile(encryption, []byte("resources: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &facts{Keys: keys, sharedSettings: sharedSettings{
		APINames: []string{"api.example.org"}, APIServer: APIServerConfig{EncryptionConfig: encryption, AuditLogMaxAge: 7},
		ServiceLoadBalancer: LoadBalancerConfig{OnlyClass: true, ReservedPorts: []int32{}},
	}}
	if f.Files, err = f.APIServer.read(); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "own.yaml")
	if err := os.WriteFile(own, []byte("name: here\nnodeName: second\nmaxPods: 50\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := readSettings(own, "")
	if err != nil {
		t.Fatal(err)
	}
	said, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	f = &facts{}
	if err := json.Unmarshal(said, f); err != nil {
		t.Fatal(err)
	}
	r := &cluster.Record{Name: "here", DataDir: filepath.Join(t.TempDir(), "data"), Joined: true}
	p := &pendingJoin{Server: "https://192.0.2.1:6443", Token: "t"}
	if err := p.prepare(r, f, s); err != nil {
		t.Fatal(err)
	}
	got, err := readSettings(r.SettingsFile(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := got.share(r); err != nil {
		t.Fatal(err)
	}
	if got.Name != "here" || got.NodeName != "second" || got.MaxPods != 50 || !r.HasSettings(s.text) || !slices.Equal(got.APINames, f.APINames) ||
		got.APIServer.AuditLogMaxAge != 7 || !got.ServiceLoadBalancer.OnlyClass || got.ServiceLoadBalancer.ReservedPorts == nil {
		t.Errorf("%+v", got.Config)
	}
	laterSettings(t, r, got)
	b, err := os.ReadFile(got.APIServer.EncryptionConfig)
	if err != nil || string(b) != "resources: []\n" || strings.HasPrefix(got.APIServer.EncryptionConfig, there) {
		t.Errorf("%s: %q, %v", got.APIServer.EncryptionConfig, b, err)
	}
	for _, secret := range []string{joinFile(r), got.APIServer.EncryptionConfig, filepath.Join(r.DataDir, "pki", "ca.pem")} {
		if st, err := os.Stat(secret); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", secret, st, err)
		}
	}
	for _, field := range []string{"apiServer: {auditLogMaxAge: 1}", "serviceCIDRs: [10.1.0.0/16]", "apiNames: [x]", "serviceLoadBalancer: {onlyClass: true}"} {
		if err := os.WriteFile(own, []byte(field+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := readSettings(own, "")
		if err != nil && !strings.HasPrefix(field, "serviceCIDRs") {
			t.Fatal(err)
		} else if err != nil {
			continue // wants podCIDRs beside it
		}
		name, _, _ := strings.Cut(field, ":")
		if _, _, _, err := (&joinFlags{server: "https://192.0.2.1:6443"}).learn(t.Context(), cluster.Wish{}, s); err == nil || !strings.Contains(err.Error(), name+": a server that joins has the cluster's") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// laterSettings gives a server that has joined other settings than it had: the cluster's stay, and what differs from them is refused.
func laterSettings(t *testing.T, r *cluster.Record, has *settings) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "later.yaml")
	later := func(text string) (*settings, error) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := readSettings(file, "")
		if err != nil {
			t.Fatal(err)
		}
		return s, s.share(r)
	}
	if s, err := later("maxPods: 60\n"); err != nil || s.MaxPods != 60 || !reflect.DeepEqual(s.APIServer, has.APIServer) || !reflect.DeepEqual(s.APINames, has.APINames) {
		t.Errorf("%+v, %v", s.Config, err)
	}
	for field, value := range map[string]string{"apiServer": "{}", "apiNames": "[other]", "serviceLoadBalancer": "{}", "etcdEndpoints": `["https://192.0.2.1:2379"]`} {
		if _, err := later(field + ": " + value + "\n"); err == nil || !strings.Contains(err.Error(), file+": "+field+": a server that has joined has the cluster's") {
			t.Errorf("%s: %v", field, err)
		}
	}
	// What `yare config` prints is a file of settings.
	all, err := yaml.Marshal(has.Config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := later(string(all)); err != nil {
		t.Error(err)
	}
	if err := os.Remove(sharedFile(r)); err != nil {
		t.Fatal(err)
	}
	if _, err := later(""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without what the cluster has said it starts: %v", err)
	}
}

// Who joins asks nobody whom the token does not name.
func TestAskAuthority(t *testing.T) {
	t.Parallel()
	p, err := pki.Ensure(t.TempDir(), pki.Config{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.Ensure(t.TempDir(), pki.Config{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := p.CA.Token(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	serve := func(shows, serves *pki.PKI) *httptest.Server {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				_, _ = w.Write(shows.CA.PEM())
				return
			}
			if asked++; asked == 1 {
				http.Error(w, "soon", http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write([]byte(`{"apiPort": 7}`))
		}))
		srv.TLS = serves.ServerTLS(serves.Server)
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv
	}
	j := &pendingJoin{Server: serve(p, p).URL, Token: token}
	if j.Authority, err = j.authority(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := &facts{}
	if err := j.ask(t.Context(), joinRequest{}, f); err != nil || f.APIPort != 7 || asked != 2 {
		t.Errorf("%+v, %v, asked %d times", f, err, asked)
	}
	// Somebody between, who shows his own authority, or the right one that he has no key of.
	if _, err := (&pendingJoin{Server: serve(other, other).URL, Token: token}).authority(t.Context()); err == nil || !strings.Contains(err.Error(), "not the one of the token") {
		t.Errorf("%v", err)
	}
	before := asked
	between := &pendingJoin{Server: serve(p, other).URL, Token: token}
	if between.Authority, err = between.authority(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := between.ask(t.Context(), joinRequest{Token: token}, f); err == nil || asked != before {
		t.Errorf("the token was given away: %v", err)
	}
}

func TestJoinFlags(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		j   joinFlags
		why string
	}{
		{joinFlags{}, ""},
		{joinFlags{"https://192.0.2.1:6443", "t", ""}, ""},
		{joinFlags{"https://192.0.2.1:6443", "", "-"}, ""},
		{joinFlags{"https://192.0.2.1:6443", "", ""}, "given together"},
		{joinFlags{"", "t", ""}, "given together"},
		{joinFlags{"", "", "f"}, "given together"},
		{joinFlags{"https://192.0.2.1:6443", "t", "f"}, "leave one of them out"},
		{joinFlags{"192.0.2.1:6443", "t", ""}, "is not https://HOST:PORT"},
		{joinFlags{"https://192.0.2.1/x", "t", ""}, "is not https://HOST:PORT"},
	} {
		if err := tt.j.check(); (err == nil) != (tt.why == "") || err != nil && !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%+v: %v", tt.j, err)
		}
	}
	if j := (joinFlags{"https://192.0.2.1:6443/", "t", ""}); j.check() != nil || j.server != "https://192.0.2.1:6443" {
		t.Errorf("%+v", j)
	}
}

// The token comes from where no other user sees it.
func TestTokenFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	for text, want := range map[string]string{"t\n": "t", "t": "t", " t \nEND\n": "t", "": "", "\nt\n": ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for from, in := range map[string]string{file: "other", "-": text} {
			if got, err := (&joinFlags{tokenFile: from}).secret(strings.NewReader(in)); got != want || (err == nil) != (want != "") {
				t.Errorf("%q in %s: %q, %v", text, from, got, err)
			}
		}
	}
	if _, err := (&joinFlags{tokenFile: file + "x"}).secret(nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A node's connections go to the server in use, to the next when that is gone, and away from one without a majority.
func TestBalance(t *testing.T) {
	t.Parallel()
	keys, err := pki.Ensure(t.TempDir(), pki.Config{})
	if err != nil {
		t.Fatal(err)
	}
	minority := map[string]bool{}
	var servers []*httptest.Server
	var at []string
	for range 3 {
		srv := httptest.NewUnstartedServer(nil)
		host := srv.Listener.Addr().String()
		srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if minority[host] {
				w.Header().Set(apiserver.NoMajority, "true")
			}
			_, _ = w.Write([]byte(host))
		})
		srv.TLS = keys.ServerTLS(keys.Server)
		srv.StartTLS()
		t.Cleanup(srv.Close)
		servers, at = append(servers, srv), append(at, host)
	}
	file := filepath.Join(t.TempDir(), "servers")
	b := newBalance(at[0], file, slog.New(slog.DiscardHandler))
	config := &rest.Config{Host: "https://" + at[0], TLSClientConfig: rest.TLSClientConfig{CAData: keys.CA.PEM()}}
	b.through(config)
	c, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	asks := func(want string) {
		t.Helper()
		var last error
		for range 3 { // a connection that was just closed may be found to be so by a request
			r, err := c.Get("https://" + at[0] + "/")
			if last = err; err != nil {
				continue
			}
			text := make([]byte, 100)
			n, _ := r.Body.Read(text)
			r.Body.Close()
			if got := string(text[:n]); got != want {
				t.Errorf("answered by %s, want %s", got, want)
			}
			return
		}
		t.Error(last)
	}
	asks(at[0])
	b.set([]string{at[1], at[0], at[2]})
	asks(at[0])
	servers[0].CloseClientConnections()
	servers[0].Close()
	asks(at[2]) // the one behind
	b.moved = time.Now().Add(-time.Minute)
	minority[at[2]] = true
	asks(at[2]) // which says that it is of no use
	asks(at[1])
	minority[at[1]] = true
	asks(at[1])
	asks(at[1]) // chosen a moment ago: all may be so
	open := func() int {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.conns)
	}
	if n := open(); n != 1 {
		t.Errorf("%d connections are open", n)
	}
	servers[1].CloseClientConnections()
	for end := time.Now().Add(5 * time.Second); open() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a connection that the server has closed is kept")
		}
	}
	// What was learned is there at the next start, the first server last.
	if err := os.WriteFile(file, []byte(at[1]+"\n"+at[2]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if next := newBalance(at[0], file, slog.New(slog.DiscardHandler)); !slices.Equal(next.all, []string{at[1], at[2], at[0]}) {
		t.Errorf("%v", next.all)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.dial(ctx, "tcp", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestServersOf(t *testing.T) {
	port := int32(6443)
	s := &discoveryv1.EndpointSlice{
		Ports: []discoveryv1.EndpointPort{{Port: &port, Protocol: new(corev1.ProtocolTCP)}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"192.0.2.1"}}, {Addresses: []string{"192.0.2.2"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)}},
			{Addresses: []string{"2001:db8::1"}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}, {Addresses: []string{"name"}},
		},
	}
	if got, want := serversOf(s), []string{"192.0.2.1:6443", net.JoinHostPort("2001:db8::1", "6443")}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
