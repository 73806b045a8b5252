package pod

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strconv"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/volume"
)

// Upstream's figures.
const (
	refreshSpread  = 5 * time.Minute  // certificates that were issued together are not renewed together
	refreshOverdue = 10 * time.Minute // after the time at which it should have begun
	retryRefresh   = 30 * time.Second
)

// projection names a podCertificate source of a pod.
type projection struct {
	volume string
	index  int
}

func (p projection) String() string { return p.volume + "/" + strconv.Itoa(p.index) }

// source returns what the pod says of it.
func (p projection) source(pod *corev1.Pod) *corev1.PodCertificateProjection {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Name == p.volume && v.Projected != nil && p.index < len(v.Projected.Sources) {
			return v.Projected.Sources[p.index].PodCertificate
		}
	}
	return nil
}

// certificate is the key and the certificate of one projection, kept in memory alone: after a restart of the kubelet pods get
// new ones. What has been issued stays in use while the next is asked for.
//
//	─> asked ─> issued ─> issued and asked ─> issued ...
//	     └────────────────────────┴──> refused, for ever
type certificate struct {
	have    *volume.Certificate // nil before the first was issued
	refresh time.Time           // when to ask for the next
	expires time.Time
	asked   *asked
	sent    *asked // what the job that asks has sent, to be read when it is done
	refused error

	saidOverdue, saidExpired bool
}

// asked is a request that has not been answered.
type asked struct {
	request string // name of the PodCertificateRequest
	key     []byte // PEM
}

var errNotIssued = errors.New("credential bundle is not issued yet")

// certificate returns the certificate of a projection and when to look after it again. What it has to wait for wakes the worker.
func (w *worker) certificate(ctx context.Context, pod *corev1.Pod, at projection) (*volume.Certificate, time.Time, error) {
	c := w.certificates[at]
	if c == nil {
		c = &certificate{}
		w.certificates[at] = c
	}
	var err error
	if c.refused == nil && c.asked == nil && !w.now().Before(c.refresh) {
		err = w.ask(ctx, pod, at, c)
	}
	if c.refused == nil && c.asked != nil {
		err = w.readAnswer(ctx, pod, c)
	}
	switch {
	case c.refused != nil:
		return nil, time.Time{}, c.refused
	case c.have == nil:
		return nil, time.Time{}, cmp.Or(err, errNotIssued)
	}
	again := w.warnLate(pod, c)
	if err != nil {
		w.log.Warn("certificate is not renewed", "projection", at.String(), "err", err)
		again = w.now().Add(retryRefresh)
	}
	return c.have, again, nil
}

// warnLate says once each that a certificate should have been renewed and that it has expired. It returns when there is
// something to do or to say next.
func (w *worker) warnLate(pod *corev1.Pod, c *certificate) time.Time {
	overdue := c.refresh.Add(refreshOverdue)
	if !c.saidOverdue && w.now().After(overdue) {
		c.saidOverdue = true
		w.say(pod, corev1.EventTypeWarning, "CertificateOverdueForRefresh", "PodCertificate refresh overdue")
	}
	if !c.saidExpired && w.now().After(c.expires) {
		c.saidExpired = true
		w.say(pod, corev1.EventTypeWarning, "CertificateExpired", "PodCertificate expired")
	}
	const past = time.Nanosecond // the time itself is not late
	switch {
	case c.asked == nil && w.now().Before(c.refresh):
		return c.refresh
	case !c.saidOverdue && (c.saidExpired || overdue.Before(c.expires)):
		return overdue.Add(past)
	case !c.saidExpired:
		return c.expires.Add(past)
	}
	return time.Time{}
}

// ask sends a request, beside the worker: keys take their time.
func (w *worker) ask(ctx context.Context, pod *corev1.Pod, at projection, c *certificate) error {
	job := "certificate " + at.String()
	done, err := w.jobs.do(ctx, job, func(ctx context.Context) (err error) {
		c.sent, err = w.send(ctx, pod, at.source(pod))
		return err
	})
	if !done {
		return nil
	}
	w.jobs.forget(job)
	c.asked = c.sent // nil after an error
	return err
}

// send makes a key and asks for a certificate for it.
func (w *worker) send(ctx context.Context, pod *corev1.Pod, p *corev1.PodCertificateProjection) (*asked, error) {
	account, err := client.Get[*corev1.ServiceAccount](ctx, w.Client, api.Key{Namespace: pod.Namespace, Name: cmp.Or(pod.Spec.ServiceAccountName, "default")})
	if err != nil {
		return nil, fmt.Errorf("get service account: %w", err)
	}
	node := w.Node()
	if node == nil {
		return nil, errors.New("the node is not registered yet")
	}
	key, err := newKey(p.KeyType)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make request for certificate: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	made, err := client.Create(ctx, w.Client, &certificatesv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, GenerateName: "req-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
		},
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: p.SignerName, PodName: pod.Name, PodUID: pod.UID,
			ServiceAccountName: account.Name, ServiceAccountUID: account.UID, NodeName: types.NodeName(node.Name), NodeUID: node.UID,
			MaxExpirationSeconds: p.MaxExpirationSeconds, StubPKCS10Request: stub, UnverifiedUserAnnotations: p.UserAnnotations,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("create PodCertificateRequest: %w", err)
	}
	return &asked{made.Name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}, nil
}

func newKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "RSA3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ECDSAP256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSAP384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ECDSAP521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ED25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("unknown key type %q", kind)
}

// readAnswer takes the signer's answer, if there is one. A request that somebody has deleted is sent anew.
func (w *worker) readAnswer(ctx context.Context, pod *corev1.Pod, c *certificate) error {
	key := api.Key{Namespace: pod.Namespace, Name: c.asked.request}
	r, err := client.Get[*certificatesv1.PodCertificateRequest](ctx, w.Client, key)
	if apierrors.IsNotFound(err) {
		c.asked = nil
		return fmt.Errorf("PodCertificateRequest %q appears to have been deleted", key)
	}
	if err != nil {
		return fmt.Errorf("get PodCertificateRequest %q: %w", key, err)
	}
	for _, end := range r.Status.Conditions {
		switch end.Type {
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			s := &r.Status
			if s.BeginRefreshAt == nil || s.NotAfter == nil {
				return fmt.Errorf("PodCertificateRequest %q was issued without times", key)
			}
			*c = certificate{
				have:    &volume.Certificate{Key: c.asked.key, Chain: volume.CleanChain(s.CertificateChain)},
				refresh: s.BeginRefreshAt.Add(mathrand.N(refreshSpread)), expires: s.NotAfter.Time,
			}
			return nil
		case certificatesv1.PodCertificateRequestConditionTypeDenied:
			w.say(pod, corev1.EventTypeWarning, end.Type, "PodCertificateRequest %s was denied, reason=%q, message=%q", key, end.Reason, end.Message)
			c.refused = fmt.Errorf("PodCertificateRequest was permanently denied: reason=%q message=%q", end.Reason, end.Message)
		case certificatesv1.PodCertificateRequestConditionTypeFailed:
			w.say(pod, corev1.EventTypeWarning, end.Type, "PodCertificateRequest %s failed, reason=%q, message=%q", key, end.Reason, end.Message)
			c.refused = fmt.Errorf("PodCertificateRequest was permanently failed: reason=%q message=%q", end.Reason, end.Message)
		}
	}
	return nil
}
