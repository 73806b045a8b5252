// Package cluster starts clusters out of single programs, each of them ours or upstream's, on a host of their own.
//
// Facts of upstream's programs that were hard to find out:
//
//   - kubelet of 1.37 refuses a host without cgroup v2 unless failCgroupV1 is false. A runtime without the call
//     RuntimeConfig, as Debian's containerd 1.6 is, is its last.
//   - containerd finds its shim by PATH, and makes sandboxes of an image that has to be there: PauseImage.
//   - runc says "can't get final child's PID from pipe" and no more where root has no CAP_SYS_RESOURCE and is to make a
//     process less likely to be killed for memory than itself: restrict_oom_score_adj.
//   - Pods have the CNI plugin ptp and not bridge: what goes from pod to pod over a bridge passes the rules of Services
//     only with br_netfilter.
//   - kube-proxy's nftables mode asks for nft alone; connection tracking's limits belong to the whole machine, so they are
//     left alone (all of conntrack zero).
//   - kube-apiserver refuses to be advertised by a loopback address.
package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/yare-dev/yare/test/peers/host"
	"github.com/yare-dev/yare/test/peers/pki"
	"github.com/yare-dev/yare/test/peers/programs"
)

// Whose a program is.
type Whose int

const (
	Theirs Whose = iota // upstream's
	Ours
)

// Plan says of each component whose it is.
type Plan struct{ APIServer, Controllers, Scheduler, Proxy, Kubelet, Runtime Whose }

// What is the same in every cluster: its host has a network of its own.
const (
	NodeName   = "n1"
	Services   = "10.96.0.0/16"
	apiService = "10.96.0.1"
	dnsService = "10.96.0.10"
	Pods       = "10.244.0.0/16"
	nodePods   = "10.244.0.0/24"
	apiPort    = "6443"
	// RegistryPort is where the cluster may find a registry outside.
	RegistryPort = "5000"
)

// Programs are what clusters are made of.
type Programs struct {
	programs.Programs
	Yare string
}

// Ranges are what an API server gives to Services.
type Ranges struct{ Addresses, NodePorts string }

// Cluster is a running one. It ends with its host.
type Cluster struct {
	host     *host.Host
	programs Programs
	plan     Plan
	ranges   Ranges
	url      string
	access   access
	socket   string // of the runtime
}

// access is how the components reach the API server, and prove who they are.
type access struct {
	authority               string // file
	authorityPEM            []byte
	admin                   string // kubeconfigs
	controllers, scheduler  string
	proxy, kubelet          string
	kubeletServing          pki.Files
	accountKey, accountsPub string
}

// Start starts a cluster on h and returns when its API server is ready and the other programs run.
func Start(ctx context.Context, h *host.Host, p Programs, plan Plan) (*Cluster, error) {
	c := newCluster(h, p, plan, Ranges{Services, "30000-32767"})
	resolver := []byte("nameserver " + h.Outside.String() + "\noptions timeout:1 attempts:1\n")
	if err := os.WriteFile(c.path("resolv.conf"), resolver, 0o644); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		name         string
		whose        Whose
		theirs, ours func(context.Context) error
	}{
		{"API server", plan.APIServer, c.theirAPIServer, c.ourAPIServer},
		{"runtime", plan.Runtime, c.theirRuntime, c.ourRuntime},
		{"controllers", plan.Controllers, c.theirControllers, c.ourControllers},
		{"scheduler", plan.Scheduler, c.theirScheduler, c.ourScheduler},
		{"kubelet", plan.Kubelet, c.theirKubelet, c.ourKubelet},
		{"proxy", plan.Proxy, c.theirProxy, c.ourProxy},
	} {
		start := part.theirs
		if part.whose == Ours {
			start = part.ours
		}
		if err := start(ctx); err != nil {
			return nil, fmt.Errorf("start %s: %w", part.name, err)
		}
	}
	return c, nil
}

// StartAPIServer starts an API server alone.
func StartAPIServer(ctx context.Context, h *host.Host, p Programs, whose Whose, r Ranges) (*Cluster, error) {
	c := newCluster(h, p, Plan{APIServer: whose}, r)
	if whose == Ours {
		return c, c.ourAPIServer(ctx)
	}
	return c, c.theirAPIServer(ctx)
}

func newCluster(h *host.Host, p Programs, plan Plan, r Ranges) *Cluster {
	return &Cluster{host: h, programs: p, plan: plan, ranges: r, url: "https://" + h.Address.String() + ":" + apiPort}
}

// Kubeconfig is the administrator's.
func (c *Cluster) Kubeconfig() string { return c.access.admin }

func (c *Cluster) path(name string) string { return filepath.Join(c.host.Dir, name) }

// yare starts a command of ours.
func (c *Cluster) yare(name string, args ...string) error {
	_, err := c.host.Start(name, nil, append([]string{c.programs.Yare, name}, args...)...)
	return err
}

// theirs starts a program of upstream's, by a path that also finds its helpers.
func (c *Cluster) theirs(name string, args ...string) error {
	path := "PATH=" + c.programs.Dir + ":" + os.Getenv("PATH")
	_, err := c.host.Start(name, []string{path}, append([]string{c.programs.Path(name)}, args...)...)
	return err
}

// answers waits until the API server says that it is ready.
func (c *Cluster) answers(ctx context.Context) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.access.admin)
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(cfg.CertData, cfg.KeyData)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cfg.CAData)
	web := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}}}
	return c.until(ctx, "the API server", func() error {
		r, err := web.Get(c.url + "/readyz")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if text, err := io.ReadAll(r.Body); r.StatusCode != http.StatusOK {
			return errors.Join(fmt.Errorf("%s: %s", r.Status, bytes.TrimSpace(text)), err)
		}
		return nil
	})
}

// until waits as long as a program may take to start, and as long as all programs run.
func (c *Cluster) until(ctx context.Context, what string, done func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	return host.Until(ctx, what, func() error {
		if err := c.host.Alive(); err != nil {
			fail(err)
			return err
		}
		return done()
	})
}

// kubeconfig writes one with a user's certificate.
func (c *Cluster) kubeconfig(name string, user pki.Files) (string, error) {
	cert, err := os.ReadFile(user.Cert)
	if err != nil {
		return "", err
	}
	key, err := os.ReadFile(user.Key)
	if err != nil {
		return "", err
	}
	return c.writeKubeconfig(name, cert, key)
}

func (c *Cluster) writeKubeconfig(name string, cert, key []byte) (string, error) {
	path := c.path(name + ".kubeconfig")
	return path, clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"peers": {Server: c.url, CertificateAuthorityData: c.access.authorityPEM}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"peers": {ClientCertificateData: cert, ClientKeyData: key}},
		Contexts:       map[string]*clientcmdapi.Context{"peers": {Cluster: "peers", AuthInfo: "peers"}},
		CurrentContext: "peers",
	}, path)
}
