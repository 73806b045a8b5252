// Package pki is the cluster's own certificate authority: it makes, checks, renews and hands out
// every key and certificate that Yare's components need, and writes kubeconfig files. It replaces what
// kubeadm's certs and kubeconfig phases do.
//
// Vocabulary: an Identity is a key with a certificate that the cluster CA signed for one purpose, server or
// client. A folder holds one file per identity:
//
//	lock         flock'ed while Ensure works, so that two processes agree on one CA
//	ca.pem       key and certificate of the CA, 0600      ca.crt   the certificate alone, for others to trust
//	sa.pem       key that signs service account tokens    sa.pub   its public half
//	front-proxy-ca.pem   the authority by which aggregated API servers know ours: whoever has a certificate of it speaks to
//	             them for any user, so it signs nothing but front-proxy-client.pem
//	etcd-ca.pem  the authority by which members of the database know each other, which signs nothing but their etcd-peer.pem;
//	             etcd-ca.crt is the certificate alone
//	<name>.pem   key and certificate of an identity, 0600
//
// Invariants:
//   - A key and its certificate are one file, put in place by one rename: no crash leaves a pair that does not match.
//   - Everything but the authorities and sa.pem is derived. Ensure re-issues what is missing, unreadable, not signed by
//     its authority, for other names or addresses, or near its end; it never replaces an authority or sa.pem, whose loss would
//     cut off every client: when they are damaged Ensure says so.
//   - All servers of a cluster have the same authorities and sa.pem (Shared); everything else is each one's own.
package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Durations of certificates. Skew is how far a certificate's start lies in the past, for clocks that differ.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	renewBefore   = 90 * 24 * time.Hour
	skew          = 5 * time.Minute
)

// ProxyClientName is the common name that the API server has towards aggregated API servers.
const ProxyClientName = "front-proxy-client"

// Config says whom certificates are for.
type Config struct {
	ClusterDomain  string       // "cluster.local" when empty
	Names          []string     // further DNS names of the API server
	Addresses      []netip.Addr // addresses that the API server is reached at, beside loopback
	ServiceAddress netip.Addr   // address of the Service default/kubernetes
	NodeName       string       // this machine's Node; empty: no kubelet identities
	NodeAddresses  []netip.Addr // addresses that the kubelet is reached at
}

// PKI is the content of a folder. Its fields do not change; an Identity's certificate may, by Renew.
type PKI struct {
	Dir        string
	CA         *Authority
	FrontProxy *Authority // signs the API server's identity towards aggregated API servers
	Peers      *Authority // signs identities of members of the database

	// ServiceAccounts signs service account tokens (ES256).
	ServiceAccounts *ecdsa.PrivateKey

	Server         *Identity // the API server's own certificate
	KubeletClient  *Identity // the API server towards kubelets
	ProxyClient    *Identity // the API server towards aggregated API servers, of the authority FrontProxy
	Peer           *Identity // the database's member towards others, as server and as client, of the authority Peers
	Admin          *Identity // system:masters
	Controllers    *Identity // system:kube-controller-manager
	Scheduler      *Identity // system:kube-scheduler
	Proxy          *Identity // system:kube-proxy
	Kubelet        *Identity // system:node:NAME as a client; nil without Config.NodeName
	KubeletServing *Identity // the kubelet's server; nil without Config.NodeName

	config Config
}

// Identity is a key and certificate. It is safe for concurrent use.
type Identity struct {
	name    string
	current atomic.Pointer[pair]
}

type pair struct {
	pem  []byte // key, then certificate
	cert tls.Certificate
}

// Certificate returns the current certificate and key. It is read-only.
func (i *Identity) Certificate() *tls.Certificate { return &i.current.Load().cert }

// GetCertificate is for tls.Config of servers: renewed certificates are used at once.
func (i *Identity) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return i.Certificate(), nil
}

// GetClientCertificate is for tls.Config of clients.
func (i *Identity) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return i.Certificate(), nil
}

// PEM returns the private key and the certificate in PEM.
func (i *Identity) PEM() (key, cert []byte) { return splitPEM(i.current.Load().pem) }

// Ensure makes dir hold a complete set of keys and certificates for c, creating and re-issuing what is
// needed, and returns it. It is idempotent, and safe against crashes and against other processes that do the same.
func Ensure(dir string, c Config) (*PKI, error) {
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make certificate folder: %w", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := sweep(dir); err != nil {
		return nil, err
	}
	p := &PKI{Dir: dir, config: c}
	if err := p.ensureRoots(); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	requests := p.requests()
	errs := make([]error, len(requests))
	for n, r := range requests {
		*r.into = &Identity{name: r.name}
		wg.Go(func() { errs[n] = p.ensure(*r.into, r) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, syncDir(dir)
}

// Renew re-issues the certificates that near their end and returns when to call it again. Servers and clients that
// use GetCertificate and GetClientCertificate take them over by themselves.
func (p *PKI) Renew() (next time.Duration, err error) {
	unlock, err := lock(p.Dir)
	if err != nil {
		return 0, err
	}
	defer unlock()
	end := time.Now().Add(leafLife)
	for _, r := range p.requests() {
		if err := p.ensure(*r.into, r); err != nil {
			return 0, err
		}
		if t := (*r.into).Certificate().Leaf.NotAfter; t.Before(end) {
			end = t
		}
	}
	return max(time.Until(end.Add(-renewBefore)), time.Hour), syncDir(p.Dir)
}

// ensureRoots loads or makes the CA and the token key, which nothing can replace, and their public halves.
func (p *PKI) ensureRoots() (err error) {
	if p.CA, err = ensureAuthority(p.Dir, "ca", "kubernetes"); err != nil {
		return err
	}
	if p.FrontProxy, err = ensureAuthority(p.Dir, "front-proxy-ca", "front-proxy-ca"); err != nil {
		return err
	}
	if p.Peers, err = ensureAuthority(p.Dir, "etcd-ca", "etcd-ca"); err != nil {
		return err
	}
	if p.ServiceAccounts, err = ensureSigner(p.Dir); err != nil {
		return err
	}
	public, err := publicPEM(p.ServiceAccounts)
	if err != nil {
		return err
	}
	if err := writeIfChanged(filepath.Join(p.Dir, "ca.crt"), p.CA.PEM(), 0o644); err != nil {
		return err
	}
	if err := writeIfChanged(p.PeerAuthorityFile(), p.Peers.PEM(), 0o644); err != nil {
		return err
	}
	return writeIfChanged(filepath.Join(p.Dir, "sa.pub"), public, 0o644)
}

type request struct {
	name string
	into **Identity
	by   *Authority
	Request
}

// requests is the list of identities.
func (p *PKI) requests() []request {
	client := func(name string, into **Identity, user string, groups ...string) request {
		return request{name, into, p.CA, Request{User: user, Groups: groups}}
	}
	rs := []request{
		{"server", &p.Server, p.CA, p.config.server()},
		{"front-proxy-client", &p.ProxyClient, p.FrontProxy, Request{User: ProxyClientName}},
		{"etcd-peer", &p.Peer, p.Peers, Request{User: "etcd-peer", Server: true, Client: true, Addresses: p.config.Addresses}},
		client("kubelet-client", &p.KubeletClient, "kube-apiserver-kubelet-client", "system:masters"),
		client("admin", &p.Admin, "kubernetes-admin", "system:masters"),
		client("controllers", &p.Controllers, "system:kube-controller-manager"),
		client("scheduler", &p.Scheduler, "system:kube-scheduler"),
		client("proxy", &p.Proxy, "system:kube-proxy"),
	}
	if p.config.NodeName != "" {
		user, serving := NodeRequests(p.config.NodeName, p.config.NodeAddresses)
		rs = append(rs, request{"kubelet", &p.Kubelet, p.CA, user}, request{"kubelet-serving", &p.KubeletServing, p.CA, serving})
	}
	return rs
}

// server is the API server's certificate request.
func (c Config) server() Request {
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc." + c.ClusterDomain}
	addresses := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if c.ServiceAddress.IsValid() {
		addresses = append(addresses, c.ServiceAddress)
	}
	return Request{User: "kube-apiserver", Server: true, Names: append(names, c.Names...),
		Addresses: append(addresses, c.Addresses...)}
}

// NodeRequests returns what a node's kubelet needs: an identity as client of the API server, and one to serve with.
func NodeRequests(node string, addresses []netip.Addr) (client, serving Request) {
	user := "system:node:" + node
	client = Request{User: user, Groups: []string{"system:nodes"}}
	serving = Request{User: user, Groups: []string{"system:nodes"}, Server: true,
		Names: []string{node, "localhost"}, Addresses: append(slices.Clone(addresses), netip.AddrFrom4([4]byte{127, 0, 0, 1}))}
	return client, serving
}

// ensure loads i's file, or replaces it when it does not answer r any more.
func (p *PKI) ensure(i *Identity, r request) error {
	path := filepath.Join(p.Dir, i.name+".pem")
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read certificate: %w", err)
	}
	if got, ok := r.by.valid(data, r.Request, time.Now()); ok {
		if old := i.current.Load(); old == nil || !bytes.Equal(old.pem, data) {
			i.current.Store(got)
		}
		return nil
	}
	key, cert, err := r.by.Issue(r.Request)
	if err != nil {
		return fmt.Errorf("issue certificate %s: %w", i.name, err)
	}
	data = append(key, cert...)
	if err := writeFile(path, data, 0o600); err != nil {
		return err
	}
	got, err := parsePair(data)
	if err != nil {
		return fmt.Errorf("read certificate %s: %w", i.name, err)
	}
	i.current.Store(got)
	return nil
}

// PeerFile holds the key and the certificate of Peer.
func (p *PKI) PeerFile() string { return filepath.Join(p.Dir, "etcd-peer.pem") }

// PeerAuthorityFile holds the certificate of Peers.
func (p *PKI) PeerAuthorityFile() string { return filepath.Join(p.Dir, "etcd-ca.crt") }

// PeerTLS returns what serves other members of the database, and nobody else.
func (p *PKI) PeerTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, ClientCAs: p.Peers.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
		GetCertificate: p.Peer.GetCertificate}
}

// Pool returns a pool that holds the CA alone.
func (p *PKI) Pool() *x509.CertPool { return p.CA.Pool() }

// ClientTLS returns what connects to the cluster's servers as i.
func (p *PKI) ClientTLS(i *Identity) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: p.Pool(), GetClientCertificate: i.GetClientCertificate}
}

// ServerTLS returns what serves as i and asks clients for certificates of this CA without requiring them.
func (p *PKI) ServerTLS(i *Identity) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, ClientCAs: p.Pool(), ClientAuth: tls.RequestClientCert,
		GetCertificate: i.GetCertificate, NextProtos: []string{"h2", "http/1.1"}}
}

func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open certificate lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	// Closing the only descriptor gives the lock back.
	return func() { _ = f.Close() }, nil
}
