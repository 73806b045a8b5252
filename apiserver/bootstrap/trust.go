package bootstrap

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/aggregator"
	"github.com/yare-dev/yare/apiserver/authn"
)

// trusted is the ConfigMap by which other servers of the cluster learn whose client certificates this one accepts, and, in its
// keys requestheader-*, which front proxies it believes, if any.
var trusted = api.Key{Namespace: metav1.NamespaceSystem, Name: "extension-apiserver-authentication"}

const (
	clientCA = "client-ca-file"
	proxyCA  = "requestheader-client-ca-file"
	// slack is how long a certificate stays after its end, for clocks that differ.
	slack = 5 * time.Minute
)

// trust ensures that the ConfigMap names this server's authorities. What other API servers wrote stays.
func (b *Bootstrap) trust(ctx context.Context) error {
	return ensure(ctx, b.client, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: trusted.Namespace, Name: trusted.Name},
		Data:       b.trustedData(nil),
	}, func(now, _ *corev1.ConfigMap) { now.Data = b.trustedData(now.Data) })
}

// trustedData adds to what the ConfigMap says: whose certificates are accepted, and who may speak for others by which headers, to this
// server as well as for it.
func (b *Bootstrap) trustedData(now map[string]string) map[string]string {
	data := map[string]string{}
	maps.Copy(data, now)
	data[clientCA] = bundle(time.Now(), now[clientCA], string(b.config.ClientCA))
	f := b.config.FrontProxy
	if len(b.config.FrontProxyAuthorities) == 0 {
		f = authn.FrontProxy{}
	}
	names := f.AllowedNames
	if len(b.config.ProxyClientCA) > 0 {
		own := aggregator.Headers()
		f.UsernameHeaders = append(slices.Clip(f.UsernameHeaders), own.UsernameHeaders...)
		f.UIDHeaders = append(slices.Clip(f.UIDHeaders), own.UIDHeaders...)
		f.GroupHeaders = append(slices.Clip(f.GroupHeaders), own.GroupHeaders...)
		f.ExtraHeaderPrefixes = append(slices.Clip(f.ExtraHeaderPrefixes), own.ExtraHeaderPrefixes...)
		// Where any name is allowed, naming one would forbid the others.
		if anyName := len(b.config.FrontProxyAuthorities) > 0 && len(names) == 0; !anyName {
			names = append(slices.Clip(names), b.config.ProxyClientName)
		}
	} else if len(b.config.FrontProxyAuthorities) == 0 {
		return data
	}
	data[proxyCA] = bundle(time.Now(), now[proxyCA], string(b.config.FrontProxyAuthorities), string(b.config.ProxyClientCA))
	for key, own := range map[string][]string{
		"requestheader-allowed-names": names, "requestheader-username-headers": f.UsernameHeaders, "requestheader-uid-headers": f.UIDHeaders,
		"requestheader-group-headers": f.GroupHeaders, "requestheader-extra-headers-prefix": f.ExtraHeaderPrefixes,
	} {
		data[key] = joined(now[key], own)
	}
	return data
}

// joined is a list in JSON of what is in text, such a list as well, and in own.
func joined(text string, own []string) string {
	var list []string
	_ = json.Unmarshal([]byte(text), &list) // what is none is replaced
	for _, s := range own {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	if list == nil {
		list = []string{}
	}
	out, err := json.Marshal(list)
	if err != nil {
		return "[]"
	}
	return string(out)
}

// bundle is each certificate of the texts once, in PEM, without those that have ended and whatever else there is.
func bundle(now time.Time, texts ...string) string {
	var out bytes.Buffer
	seen := map[string]bool{}
	for _, text := range texts {
		for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
			c, err := x509.ParseCertificate(block.Bytes)
			if block.Type != "CERTIFICATE" || err != nil || seen[string(c.Raw)] || now.After(c.NotAfter.Add(slack)) {
				continue
			}
			seen[string(c.Raw)] = true
			out.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: c.Raw}))
		}
	}
	return out.String()
}
