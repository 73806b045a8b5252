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
	var own authn.FrontProxy
	if len(b.config.ProxyClientCA) > 0 {
		own = aggregator.Headers()
		// Where any name is allowed, naming one would forbid the others.
		if anyName := len(b.config.FrontProxyAuthorities) > 0 && len(names) == 0; !anyName {
			names = append(slices.Clip(names), b.config.ProxyClientName)
		}
	} else if len(b.config.FrontProxyAuthorities) == 0 {
		return data
	}
	data[proxyCA] = bundle(time.Now(), now[proxyCA], string(b.config.FrontProxyAuthorities), string(b.config.ProxyClientCA))
	// Of several names for the same the first counts: that is the one that this server sets.
	for key, l := range map[string]struct{ own, front []string }{
		"requestheader-allowed-names": {nil, names}, "requestheader-username-headers": {own.UsernameHeaders, f.UsernameHeaders},
		"requestheader-uid-headers": {own.UIDHeaders, f.UIDHeaders}, "requestheader-group-headers": {own.GroupHeaders, f.GroupHeaders},
		"requestheader-extra-headers-prefix": {own.ExtraHeaderPrefixes, f.ExtraHeaderPrefixes},
	} {
		data[key] = joined(l.own, now[key], l.front)
	}
	return data
}

// joined is a list in JSON of what is in first, in text, which is such a list as well, and in last.
func joined(first []string, text string, last []string) string {
	var there []string
	_ = json.Unmarshal([]byte(text), &there) // what is none is replaced
	list := []string{}
	for _, s := range slices.Concat(first, there, last) {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
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
