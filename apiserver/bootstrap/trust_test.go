package bootstrap

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"math/big"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/client"
)

// authority is the certificate of an authority that ends at a time, which alone tells one from another.
func authority(t testing.TB, end time.Time) string {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: end, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestBundle(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b := authority(t, now.Add(time.Hour)), authority(t, now.Add(-slack))
	gone := authority(t, now.Add(-slack-time.Second))
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
	for _, tt := range []struct {
		name  string
		texts []string
		want  string
	}{
		{"nothing", []string{"", ""}, ""},
		{"first", []string{"", a}, a},
		{"another server's stays", []string{b, a}, b + a},
		{"once", []string{a + b, a}, a + b},
		{"ended", []string{gone + b, a}, b + a},
		{"not certificates", []string{"x" + key, a}, a},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := bundle(now, tt.texts...); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

// Which front proxies are believed is said beside what other servers have said.
func TestFrontProxies(t *testing.T) {
	ca := authority(t, time.Now().Add(time.Hour))
	b := New(Config{ClientCA: []byte(ca), FrontProxyAuthorities: []byte(ca), FrontProxy: authn.FrontProxy{
		AllowedNames: []string{"front"}, UsernameHeaders: []string{"X-Remote-User"}, GroupHeaders: []string{"X-Remote-Group"}}}, nil, nil)
	got := b.trustedData(map[string]string{"requestheader-allowed-names": `["other","front"]`, "requestheader-username-headers": "odd", "more": "stays"})
	want := map[string]string{clientCA: ca, proxyCA: ca, "requestheader-allowed-names": `["other","front"]`, "requestheader-username-headers": `["X-Remote-User"]`,
		"requestheader-uid-headers": "[]", "requestheader-group-headers": `["X-Remote-Group"]`, "requestheader-extra-headers-prefix": "[]", "more": "stays"}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	b.config.ProxyClientCA, b.config.ProxyClientName = []byte(ca), "front-proxy-client"
	if got := b.trustedData(map[string]string{"requestheader-username-headers": `["X-User"]`})["requestheader-username-headers"]; got != `["X-Remote-User","X-User"]` {
		t.Errorf("this server's own is not the first: %s", got)
	}
}

// This server's own certificate towards aggregated API servers is believed beside the proxies before it.
func TestProxyClient(t *testing.T) {
	ca, other := authority(t, time.Now().Add(time.Hour)), authority(t, time.Now().Add(2*time.Hour))
	own := map[string]string{clientCA: ca, proxyCA: ca, "requestheader-allowed-names": `["front-proxy-client"]`, "requestheader-username-headers": `["X-Remote-User"]`,
		"requestheader-uid-headers": `["X-Remote-Uid"]`, "requestheader-group-headers": `["X-Remote-Group"]`, "requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`}
	for _, tt := range []struct {
		name  string
		front authn.FrontProxy
		cas   string
		want  map[string]string // beside own
	}{
		{"alone", authn.FrontProxy{AllowedNames: []string{"unused"}}, "", nil},
		{"beside a proxy", authn.FrontProxy{AllowedNames: []string{"front"}, UsernameHeaders: []string{"X-User"}}, other,
			map[string]string{proxyCA: other + ca, "requestheader-allowed-names": `["front","front-proxy-client"]`, "requestheader-username-headers": `["X-Remote-User","X-User"]`}},
		{"beside proxies of any name", authn.FrontProxy{UsernameHeaders: []string{"X-Remote-User"}}, other,
			map[string]string{proxyCA: other + ca, "requestheader-allowed-names": `[]`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := New(Config{ClientCA: []byte(ca), FrontProxy: tt.front, FrontProxyAuthorities: []byte(tt.cas), ProxyClientCA: []byte(ca), ProxyClientName: "front-proxy-client"}, nil, nil)
			want := maps.Clone(own)
			maps.Copy(want, tt.want)
			if got := b.trustedData(nil); !maps.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if got := b.trustedData(want); !maps.Equal(got, want) {
				t.Errorf("the second time %v, want %v", got, want)
			}
		})
	}
}

// Other servers read whose client certificates are accepted, whatever somebody does to the ConfigMap.
func TestTrust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := server(t)
		stop := start(t, c)
		defer stop()
		m := mended(t, c, trusted)
		own := m.Data[clientCA]
		if bundle(time.Now(), own) != own || own == "" || len(m.Data) != 1 {
			t.Errorf("%v", m.Data)
		}
		other := authority(t, time.Now().Add(time.Hour))
		if _, err := client.Mutate(t.Context(), c, m, "", func(m *corev1.ConfigMap) {
			m.Data = map[string]string{clientCA: other, "requestheader-allowed-names": `["front-proxy"]`}
		}); err != nil {
			t.Fatal(err)
		}
		if m = mended(t, c, trusted); m.Data[clientCA] != other+own || len(m.Data) != 2 {
			t.Errorf("not mended: %v", m.Data)
		}
		if err := c.Delete(t.Context(), m, client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if again := mended(t, c, trusted); again.UID == m.UID || again.Data[clientCA] != own {
			t.Errorf("not made again: %v", again.Data)
		}
	})
}
