package bootstrap

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// trusted is the ConfigMap by which other servers of the cluster learn whose client certificates this one accepts. Its
// keys requestheader-* are for front proxies, of which this server accepts none, so it writes none of them.
var trusted = api.Key{Namespace: metav1.NamespaceSystem, Name: "extension-apiserver-authentication"}

const (
	clientCA = "client-ca-file"
	// slack is how long a certificate stays after its end, for clocks that differ.
	slack = 5 * time.Minute
)

// trust ensures that the ConfigMap names this server's authorities. What other API servers wrote stays.
func (b *Bootstrap) trust(ctx context.Context) error {
	return ensure(ctx, b.client, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: trusted.Namespace, Name: trusted.Name},
		Data:       map[string]string{clientCA: string(b.config.ClientCA)},
	}, func(now, want *corev1.ConfigMap) {
		if now.Data == nil {
			now.Data = map[string]string{}
		}
		now.Data[clientCA] = bundle(time.Now(), now.Data[clientCA], want.Data[clientCA])
	})
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
