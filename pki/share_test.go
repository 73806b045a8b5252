package pki

import (
	"bytes"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"
)

// A second server has the first one's authorities and nothing else of it; members know each other, and nobody else is let in.
func TestShare(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one := ensure(t, dir, config())
	shared, err := one.Shared()
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := Share(other, shared); err != nil {
		t.Fatal(err)
	}
	two := ensure(t, other, config())
	if !bytes.Equal(one.CA.PEM(), two.CA.PEM()) || !bytes.Equal(one.Peers.PEM(), two.Peers.PEM()) || !one.ServiceAccounts.Equal(two.ServiceAccounts) {
		t.Error("authorities differ")
	}
	if bytes.Equal(one.Server.Certificate().Certificate[0], two.Server.Certificate().Certificate[0]) {
		t.Error("an identity was shared")
	}
	if err := Share(other, shared); err != nil {
		t.Error("again:", err)
	}
	third := ensure(t, t.TempDir(), config())
	if err := Share(third.Dir, shared); err == nil || !strings.Contains(err.Error(), "another cluster's") {
		t.Errorf("over another cluster's: %v", err)
	}
	delete(shared, "sa.pem")
	if err := Share(t.TempDir(), shared); err == nil {
		t.Error("without a key")
	}
	client := func(by *Authority, i *Identity) *tls.Config {
		return &tls.Config{RootCAs: by.Pool(), ServerName: "192.0.2.10", GetClientCertificate: i.GetClientCertificate}
	}
	if err := handshake(t, two.PeerTLS(), client(one.Peers, one.Peer)); err != nil {
		t.Error("a member:", err)
	}
	for name, c := range map[string]*tls.Config{
		"an administrator": client(one.Peers, one.Admin), "a kubelet": client(one.Peers, one.Kubelet), "another cluster's member": client(one.Peers, third.Peer),
	} {
		if handshake(t, two.PeerTLS(), c) == nil {
			t.Error(name, "is let in")
		}
	}
}

// handshake returns why a server and a client do not come together.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	failed := make(chan error, 1)
	go func() {
		err := tls.Server(a, server).Handshake()
		a.Close()
		failed <- err
	}()
	err := tls.Client(b, client).Handshake()
	b.Close()
	if e := <-failed; err == nil {
		err = e
	}
	return err
}

func TestToken(t *testing.T) {
	t.Parallel()
	p, other := ensure(t, t.TempDir(), config()), ensure(t, t.TempDir(), config())
	token, err := p.CA.Token(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := p.CA.CheckToken(token, now); err != nil {
		t.Error(err)
	}
	if _, err := TokenPool(token, p.CA.PEM()); err != nil {
		t.Error(err)
	}
	if _, err := TokenPool(token, other.CA.PEM()); err == nil || !strings.Contains(err.Error(), "not the one of the token") {
		t.Errorf("another authority: %v", err)
	}
	late, err := p.CA.Token(-time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for text, why := range map[string]string{
		"":                            "not a token",
		"abcdef.0123456789abcdef":     "not a token",
		"yare-server.x.y":             "not whole",
		token[:len(token)-2]:          "not whole",
		strings.ToUpper(token):        "not a token",
		late:                          "ended at",
		token[:len(token)-9] + "AAAA": "not whole",
	} {
		if err := p.CA.CheckToken(text, now); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := other.CA.CheckToken(token, now); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("another cluster's: %v", err)
	}
}
