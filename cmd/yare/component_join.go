package main

import (
	"crypto/tls"
	"encoding"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/kubelet"
	"github.com/yare-dev/yare/pki"
)

// join is all that a machine needs to be a node: one file, as secret as the keys in it. A year after it was made its certificates
// end; a new one replaces it.
type join struct {
	Node      string       `json:"node"`
	Server    string       `json:"server"` // https://HOST:PORT
	Addresses []netip.Addr `json:"addresses"`
	// ClusterCIDR are the ranges of all pods; DNS the addresses of the cluster's DNS, of which pods ask the first for names.
	ClusterCIDR   listed[netip.Prefix] `json:"clusterCIDR"`
	DNS           listed[netip.Addr]   `json:"dns,omitempty"`
	ClusterDomain string               `json:"clusterDomain"`

	Authority string `json:"authority"`
	// Each holds a key and a certificate in PEM: as client of the API server for the kubelet and the proxy, and to serve with.
	Kubelet string `json:"kubelet"`
	Proxy   string `json:"proxy"`
	Serving string `json:"serving"`

	// servers leads to the one of several API servers that answers; nil: Server is the only one.
	servers *balance
}

// listed is a list in one text, with commas: files of clusters of one family are as they were before there were two.
type listed[T fmt.Stringer] []T

// MarshalText implements encoding.TextMarshaler.
func (l listed[T]) MarshalText() ([]byte, error) { return []byte(joined(l)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *listed[T]) UnmarshalText(text []byte) error {
	for word := range strings.SplitSeq(string(text), ",") {
		var one T
		if err := any(&one).(encoding.TextUnmarshaler).UnmarshalText([]byte(word)); err != nil {
			return err
		}
		*l = append(*l, one)
	}
	return nil
}

func nodeCredentialsCommand() *cobra.Command {
	j := join{ClusterDomain: "cluster.local"}
	var name, dir string
	var addresses, clusterCIDR, dns []string
	c := &cobra.Command{
		Use: "node-credentials NODE", GroupID: "cluster", Args: cobra.ExactArgs(1),
		Short: "Print the file by which another machine becomes a node ('yare agent --join FILE')",
		Long: `Print the file by which another machine becomes a node. It holds private keys: who has it may act as that node. The machine must
have the addresses, by which the API server reaches its kubelet, one of each family of the cluster's.`,
		Example: `  yare node-credentials worker1 --address 192.168.1.11 > worker1.join
  yare agent --join worker1.join                       # there`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := requireRoot(); err != nil {
				return err
			}
			j.Node = args[0]
			if err := j.where(name, dir, clusterCIDR, dns, addresses); err != nil {
				return err
			}
			if dir == "" {
				r, err := cluster.Host{}.Find(name)
				if err != nil {
					return err
				}
				dir = r.DataDir
			}
			if err := j.issue(filepath.Join(dir, "pki")); err != nil {
				return err
			}
			return j.print(c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&name, "name", cluster.DefaultName, "name of the cluster")
	f.StringVar(&dir, "data-dir", "", "data folder of a 'yare apiserver', in place of --name")
	f.StringVar(&j.Server, "server", "", "URL by which the node reaches the API server (default: by this host's address)")
	f.StringSliceVar(&addresses, "address", nil, "addresses of the node, of each family the main one first")
	f.StringSliceVar(&clusterCIDR, "cluster-cidr", nil, "ranges of all pods' addresses, the main one first (default: the cluster's)")
	f.StringSliceVar(&dns, "cluster-dns", nil, "addresses of the cluster's DNS, the one that pods ask first (default: the cluster's)")
	f.StringVar(&j.ClusterDomain, "cluster-domain", j.ClusterDomain, "domain of the cluster's names")
	return c
}

// where fills in what is not secret, from the flags and the cluster's record.
func (j *join) where(name, dir string, clusterCIDR, dns, addresses []string) error {
	var errs []error
	for _, text := range validation.IsDNS1123Subdomain(j.Node) {
		errs = append(errs, fmt.Errorf("node name %q: %s", j.Node, text))
	}
	for _, text := range addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("--address: %w", err))
		}
		j.Addresses = append(j.Addresses, a)
	}
	if len(addresses) == 0 {
		errs = append(errs, errors.New("--address is required: how the API server reaches the node"))
	}
	port := 6443
	if dir == "" {
		r, err := cluster.Host{}.Find(name)
		if err != nil {
			return err
		}
		port, j.ClusterCIDR, j.DNS = r.APIPort, r.PodCIDRs(), r.DNSAddresses()
	}
	if ranges, err := prefixes("cluster-cidr", clusterCIDR); err != nil {
		errs = append(errs, err)
	} else if len(ranges) > 0 {
		j.ClusterCIDR = ranges
	}
	if len(j.ClusterCIDR) == 0 {
		errs = append(errs, errors.New("--cluster-cidr is required with --data-dir"))
	}
	errs = append(errs, j.checkFamilies()...)
	if len(j.ClusterCIDR) > 0 { // of the main family the first is the node's main address
		var main, others []netip.Addr
		for _, a := range j.Addresses {
			if a.Is4() == j.ClusterCIDR[0].Addr().Is4() {
				main = append(main, a)
			} else {
				others = append(others, a)
			}
		}
		j.Addresses = append(main, others...)
	}
	if len(dns) > 0 {
		j.DNS = nil
	}
	for _, text := range dns {
		a, err := netip.ParseAddr(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("--cluster-dns: %w", err))
		}
		j.DNS = append(j.DNS, a)
	}
	if j.Server == "" {
		a, err := serverAddress(name, dir, j.ClusterCIDR)
		if err != nil {
			errs = append(errs, fmt.Errorf("--server is required: %w", err))
		}
		j.Server = "https://" + netip.AddrPortFrom(a, uint16(port)).String()
	}
	return errors.Join(errs...)
}

// serverAddress is that of the cluster's API server on this host: as its settings have it, those of a data folder's being unknown.
func serverAddress(name, dir string, ranges []netip.Prefix) (netip.Addr, error) {
	var c Config
	if dir == "" {
		s, err := clusterSettings(cluster.Host{}, "", name)
		if err != nil {
			return netip.Addr{}, err
		}
		c = s.Config
	}
	if len(ranges) == 0 {
		return hostAddress(true)
	}
	as, err := c.nodeAddresses(ranges[:1])
	if err != nil {
		return netip.Addr{}, err
	}
	return as[0], nil
}

// checkFamilies refuses a node without an address of a family that its pods have: nobody could lead to them there.
func (j *join) checkFamilies() (errs []error) {
	for _, p := range j.ClusterCIDR {
		if len(j.Addresses) > 0 && !slices.ContainsFunc(j.Addresses, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() }) {
			errs = append(errs, fmt.Errorf("--address: none is of the family of %s, which pods have addresses of", p))
		}
	}
	return errs
}

// issue makes keys and certificates.
func (j *join) issue(dir string) error {
	ca, err := pki.LoadAuthority(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the cluster has not been started yet: %w", err)
	}
	if err != nil {
		return err
	}
	j.Authority = string(ca.PEM())
	client, serving := pki.NodeRequests(j.Node, j.Addresses)
	for _, r := range []struct {
		pki.Request
		into *string
	}{{client, &j.Kubelet}, {serving, &j.Serving}, {pki.Request{User: "system:kube-proxy"}, &j.Proxy}} {
		key, cert, err := ca.Issue(r.Request)
		if err != nil {
			return fmt.Errorf("issue certificate for %s: %w", r.User, err)
		}
		*r.into = string(key) + string(cert)
	}
	return nil
}

func (j *join) print(w io.Writer) error {
	b, err := yaml.Marshal(j)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// readJoin reads what `yare node-credentials` has printed.
func readJoin(file string) (*join, error) {
	if file == "" {
		return nil, errors.New("--join is required: the file that 'yare node-credentials' prints on the server")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	j := new(join)
	if err := yaml.UnmarshalStrict(b, j); err != nil {
		return nil, fmt.Errorf("credentials in %s: %w", file, err)
	}
	if j.Node == "" || j.Server == "" || j.Authority == "" || len(j.Addresses) == 0 || len(j.ClusterCIDR) == 0 {
		return nil, fmt.Errorf("credentials in %s: not the output of 'yare node-credentials'", file)
	}
	return j, nil
}

// rest returns how the API server is reached as the user of a key and certificate.
func (j *join) rest(user string) (*rest.Config, error) {
	pem := []byte(user)
	if _, err := tls.X509KeyPair(pem, pem); err != nil {
		return nil, fmt.Errorf("credentials of node %s: %w", j.Node, err)
	}
	c := &rest.Config{Host: j.Server, TLSClientConfig: rest.TLSClientConfig{CAData: []byte(j.Authority), CertData: pem, KeyData: pem}}
	if j.servers != nil {
		j.servers.through(c)
	}
	return c, nil
}

// serving is what the kubelet's server needs.
func (j *join) serving() (*tls.Config, error) {
	cert, err := tls.X509KeyPair([]byte(j.Serving), []byte(j.Serving))
	if err != nil {
		return nil, fmt.Errorf("credentials of node %s: %w", j.Node, err)
	}
	return serveWith(cert, []byte(j.Authority))
}

// complete sets what the file knows of the kubelet's settings.
func (j *join) complete(c *kubelet.Config) {
	c.NodeName, c.NodeIPs = j.Node, nil
	for _, a := range j.Addresses {
		c.NodeIPs = append(c.NodeIPs, a.String())
	}
	c.ClusterDomain = j.ClusterDomain
	if len(j.DNS) > 0 {
		c.ClusterDNS = []string{j.DNS[0].String()}
	}
}
