package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/events"
	"github.com/yare-dev/yare/client/remote"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet"
	"github.com/yare-dev/yare/run"
)

// kubeletFlags are those of `yare kubelet`.
type kubeletFlags struct {
	peer
	file, runtime, join      string
	certFile, keyFile, authn string
	name                     string
}

// runtimeLimit is how long a runtime may take to answer.
const runtimeLimit = 30 * time.Second

func kubeletCommand() *cobra.Command {
	f := &kubeletFlags{}
	c := &cobra.Command{
		Use: "kubelet", GroupID: "component", Args: cobra.NoArgs,
		Short: "The kubelet, against any API server, over any CRI runtime",
		Long: `The kubelet, against any API server, over any CRI runtime (containerd, CRI-O, 'yare runtime'). It is known to the API
server as system:node:NAME: by a kubeconfig and the certificate to serve with, or by the file of 'yare node-credentials'.
SIGTERM ends it and leaves the containers running. The driver of the built-in local storage is of whole clusters ('yare up', 'yare
agent') and not in it: other CSI drivers are taken up as by any kubelet.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := errors.Join(requireRoot(), f.open()); err != nil {
				return err
			}
			config, err := f.config()
			if err != nil {
				return err
			}
			cfg, serving, err := f.credentials(&config)
			if err != nil {
				return err
			}
			limit, cancel := context.WithTimeout(c.Context(), runtimeLimit)
			runtime, err := cri.Dial(limit, f.runtime)
			cancel()
			if err != nil {
				return fmt.Errorf("%w: is the runtime running? Name its socket by --runtime-endpoint", err)
			}
			defer runtime.Close()
			k, err := f.kubelet(cfg, config, serving, runtime)
			if err != nil {
				return err
			}
			return f.serve(c.Context(), k)
		},
	}
	l := c.Flags()
	f.add(c)
	l.StringVar(&f.file, "config", "", "YAML file with the settings (kubelet.Config of this program)")
	l.StringVar(&f.runtime, "runtime-endpoint", "unix:///run/yare-runtime/cri.sock", "unix socket of the CRI runtime")
	l.StringVar(&f.name, "hostname-override", "", "name of the Node (default: the settings', else the host's name)")
	l.StringVar(&f.join, "join", "", "file of 'yare node-credentials', in place of --kubeconfig and the certificates")
	l.StringVar(&f.certFile, "tls-cert-file", "", "certificate to serve the API server with")
	l.StringVar(&f.keyFile, "tls-private-key-file", "", "its key")
	l.StringVar(&f.authn, "client-ca-file", "", "authority of our server's clients (default: the kubeconfig's)")
	return c
}

// config reads the file over the defaults.
func (f *kubeletFlags) config() (kubelet.Config, error) {
	c := kubelet.Defaults()
	if f.file != "" {
		b, err := os.ReadFile(f.file)
		if err != nil {
			return c, fmt.Errorf("settings: %w", err)
		}
		if err := yaml.UnmarshalStrict(b, &c); err != nil {
			return c, fmt.Errorf("settings in %s: %w", f.file, err)
		}
	}
	if f.name != "" {
		c.NodeName = f.name
	}
	return c, nil
}

// credentials are how the API server is reached and what is served with. They complete the settings.
func (f *kubeletFlags) credentials(c *kubelet.Config) (*rest.Config, *tls.Config, error) {
	if f.join != "" {
		j, err := readJoin(f.join)
		if err != nil {
			return nil, nil, err
		}
		j.complete(c)
		cfg, err := j.rest(j.Kubelet)
		if err != nil {
			return nil, nil, err
		}
		serving, err := j.serving()
		return cfg, serving, err
	}
	var err error
	if c.NodeName, err = nodeName(c.NodeName); err != nil {
		return nil, nil, err
	}
	if len(c.NodeIPs) == 0 {
		a, err := hostAddress(true)
		if err != nil { // a host of IPv6 alone
			if a, err = hostAddress(false); err != nil {
				return nil, nil, err
			}
		}
		c.NodeIPs = []string{a.String()}
	}
	cfg, err := f.rest()
	if err != nil || c.Port == 0 {
		return cfg, nil, err
	}
	serving, err := f.servingFiles(cfg)
	return cfg, serving, err
}

// servingFiles is what the flags say of our own server.
func (f *kubeletFlags) servingFiles(cfg *rest.Config) (*tls.Config, error) {
	if f.certFile == "" || f.keyFile == "" {
		return nil, errors.New("--tls-cert-file and --tls-private-key-file are required, as the API server reaches us by HTTPS; or set port: 0 and do without logs and exec")
	}
	cert, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate to serve with: %w", err)
	}
	ca, err := authority(cfg, f.authn)
	if err != nil {
		return nil, err
	}
	return serveWith(cert, ca)
}

func serveWith(cert tls.Certificate, ca []byte) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the certificate authority of clients holds no certificate")
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientCAs: pool}, nil
}

// kubelet makes the kubelet with its client and its events.
func (p *peer) kubelet(cfg *rest.Config, c kubelet.Config, serving *tls.Config, runtime *cri.Client) (run.Component, error) {
	access, err := p.dial(cfg, "kubelet",
		remote.Watched{Kind: api.PodKind, Query: client.Query{Fields: fields.OneTermEqualSelector("spec.nodeName", c.NodeName)}},
		remote.Watched{Kind: api.NodeKind, Query: client.Query{Fields: fields.OneTermEqualSelector("metadata.name", c.NodeName)}},
		remote.Watched{Kind: api.ServiceKind}, remote.Watched{Kind: api.CSIDriverKind})
	if err != nil {
		return nil, err
	}
	recorder := events.New(access, "kubelet", c.NodeName, p.log)
	k, err := kubelet.New(c, kubelet.Deps{
		Client: access, CRI: runtime, Events: recorder, TLS: serving, Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	return run.InOrder("kubelet", access, run.Together("kubelet", k, recorder)), nil
}
