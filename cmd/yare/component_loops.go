package main

import (
	"crypto"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/keyutil"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/client/events"
	"github.com/yare-dev/yare/client/remote"
	"github.com/yare-dev/yare/controllers"
	"github.com/yare-dev/yare/controllers/nodeipam"
	"github.com/yare-dev/yare/controllers/serviceaccounttoken"
	"github.com/yare-dev/yare/proxy"
	"github.com/yare-dev/yare/reconcile"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/scheduler"
)

func controllerManagerCommand() *cobra.Command {
	var p peer
	var e election
	var told secure
	var rootCA, tokenKey string
	var ranges []string
	var accounts bool
	c := &cobra.Command{
		Use: "controller-manager", GroupID: "component", Args: cobra.NoArgs,
		Short: "The controllers, against any API server",
		Long: `The controllers, against any API server. They do everything as the kubeconfig's user, who must be allowed to, such as
an administrator; or, with --use-service-account-credentials, each writes as its own service account in kube-system, as upstream's do
under kubeadm, and the user needs only the role system:kube-controller-manager. The built-in local storage (the StorageClass
local) is of whole clusters, 'yare up', and not among them: claims need a class whose driver is installed.`,
		RunE: func(c *cobra.Command, _ []string) error {
			clusters, err := families("cluster-cidr", ranges)
			if err != nil {
				return err
			}
			if err := p.open(); err != nil {
				return err
			}
			cfg, err := p.rest()
			if err != nil {
				return err
			}
			m := manager{peer: &p, cfg: cfg, ranges: nodeipam.Config{Clusters: clusters}, metrics: prometheus.NewRegistry()}
			if m.rootCA, err = authority(cfg, rootCA); err != nil {
				return err
			}
			if tokenKey != "" {
				if m.tokens, err = secretTokensOf(tokenKey); err != nil {
					return err
				}
			}
			all, err := m.component(accounts)
			if err != nil {
				return err
			}
			if all, err = e.leading(&p, cfg, "kube-controller-manager", all); err != nil {
				return err
			}
			if all, err = p.serveOf(told, cfg, all, m.metrics); err != nil {
				return err
			}
			return p.serve(c.Context(), all)
		},
	}
	p.add(c)
	e.add(c)
	told.add(c, 10257)
	c.Flags().StringVar(&rootCA, "root-ca-file", "", "certificate that pods verify the API server with (default: the kubeconfig's)")
	c.Flags().StringVar(&tokenKey, "service-account-private-key-file", "", "key that signs the tokens of Secrets of type kubernetes.io/service-account-token (default: they stay empty)")
	c.Flags().StringSliceVar(&ranges, "cluster-cidr", nil, "range of pods' addresses, or two of different families, the main one first, of which every Node is given a part (default: none is given)")
	c.Flags().BoolVar(&accounts, "use-service-account-credentials", false, "let each controller write as its own service account")
	return c
}

// authority is the file's content, or else the certificate authority of the kubeconfig.
func authority(cfg *rest.Config, file string) ([]byte, error) {
	if file == "" {
		if len(cfg.CAData) > 0 {
			return cfg.CAData, nil
		}
		file = cfg.CAFile
	}
	if file == "" {
		return nil, errors.New("--root-ca-file is required: the kubeconfig names no certificate authority")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return b, nil
}

// manager is what the controllers are made of when they run alone.
type manager struct {
	*peer
	cfg     *rest.Config
	rootCA  []byte
	ranges  nodeipam.Config
	tokens  serviceaccounttoken.Sign // nil: none are made
	metrics *prometheus.Registry
}

// secretTokens signs with key.
func secretTokens(key crypto.Signer) serviceaccounttoken.Sign {
	return func(s *corev1.Secret, a *corev1.ServiceAccount) (string, error) {
		return authn.SignSecretToken(key, s, a)
	}
}

// secretTokensOf signs with the key in file.
func secretTokensOf(file string) (serviceaccounttoken.Sign, error) {
	key, err := keyutil.PrivateKeyFromFile(file)
	if err != nil {
		return nil, fmt.Errorf("--service-account-private-key-file: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("--service-account-private-key-file: %s is not a private key", file)
	}
	return secretTokens(signer), nil
}

func (m manager) component(accounts bool) (run.Component, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	cfg := m.cfg
	if accounts {
		if cfg, err = m.asAccounts(cfg); err != nil {
			return nil, err
		}
	}
	// What is read is kept in memory.
	access, err := m.dial(cfg, "kube-controller-manager", m.watched()...)
	if err != nil {
		return nil, err
	}
	d := reconcile.Deps{Client: access, Informers: reconcile.NewInformers(access), Log: m.log, Metrics: reconcile.NewMetrics(m.metrics)}
	d.Events = events.New(access, "controller-manager", host, m.log)
	all := controllers.All(controllers.Deps{Deps: d, RootCA: m.rootCA, Nodes: m.ranges, SecretToken: m.tokens, Aggregated: access.Ask})
	return run.InOrder("controller-manager", access, run.Together("controllers", append(all, d.Events)...)), nil
}

// watched are all kinds that the controllers read: they are asked, without being run.
func (m manager) watched() (ws []remote.Watched) {
	var kinds []*api.Kind
	for _, c := range controllers.List(controllers.Deps{Deps: reconcile.Deps{Informers: reconcile.NewInformers(nil), Log: m.log}, Nodes: m.ranges, SecretToken: m.tokens}) {
		for _, k := range c.Kinds {
			if k != nil && slices.Contains(api.Stored(), k) && !slices.Contains(kinds, k) { // others are not watched
				kinds = append(kinds, k)
			}
		}
	}
	for _, k := range kinds {
		ws = append(ws, remote.Watched{Kind: k})
	}
	return ws
}

func schedulerCommand() *cobra.Command {
	var p peer
	var e election
	var told secure
	var profile string
	c := &cobra.Command{
		Use: "scheduler", GroupID: "component", Args: cobra.NoArgs,
		Short: "The scheduler, against any API server",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := p.open(); err != nil {
				return err
			}
			cfg, err := p.rest()
			if err != nil {
				return err
			}
			access, err := p.dial(cfg, "kube-scheduler")
			if err != nil {
				return err
			}
			recorder := events.New(access, profile, "", p.log)
			s := scheduler.New(scheduler.Config{Profile: profile, Client: access, Events: recorder, Log: p.log, Seed: rand.Uint64()})
			all, err := e.leading(&p, cfg, "kube-scheduler", run.Together("scheduler", access, s, recorder))
			if err != nil {
				return err
			}
			if all, err = p.serveOf(told, cfg, all, prometheus.NewRegistry()); err != nil {
				return err
			}
			return p.serve(c.Context(), all)
		},
	}
	p.add(c)
	e.add(c)
	told.add(c, 10259)
	c.Flags().StringVar(&profile, "scheduler-name", "default-scheduler", "the spec.schedulerName of pods to place")
	return c
}

func proxyCommand() *cobra.Command {
	var p peer
	var node, table string
	var ranges, nodePorts []string
	var clean bool
	c := &cobra.Command{
		Use: "proxy", GroupID: "component", Args: cobra.NoArgs,
		Short: "Services by nftables, against any API server",
		Long: `Services by nftables, against any API server. The rules are in a table of their own and stay when the proxy ends, and
connections with them; --cleanup removes them.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := requireRoot(); err != nil {
				return err
			}
			if clean {
				return proxy.Remove(table)
			}
			if err := p.open(); err != nil {
				return err
			}
			config := proxy.Config{Table: table}
			var err error
			if config.NodeName, err = nodeName(node); err != nil {
				return err
			}
			if config.ClusterCIDRs, err = prefixes("cluster-cidr", ranges); err != nil {
				return err
			}
			if config.NodePortAddresses, err = prefixes("nodeport-addresses", nodePorts); err != nil {
				return err
			}
			cfg, err := p.rest()
			if err != nil {
				return err
			}
			rules, err := p.proxy(cfg, config)
			if err != nil {
				return err
			}
			return p.serve(c.Context(), rules)
		},
	}
	p.add(c)
	f := c.Flags()
	f.StringVar(&node, "hostname-override", "", "name of this host's Node (default: the host's name)")
	f.StringVar(&table, "table", "yare-proxy-services", "nftables table, nobody else's")
	f.StringSliceVar(&ranges, "cluster-cidr", nil, "ranges of pods' addresses: traffic to Services from elsewhere is masqueraded")
	f.StringSliceVar(&nodePorts, "nodeport-addresses", nil, "ranges of the host's addresses that NodePorts are served on (default: all)")
	f.BoolVar(&clean, "cleanup", false, "remove the rules and end")
	return c
}

// proxy is the Services' rules over a connection of their own.
func (p *peer) proxy(cfg *rest.Config, config proxy.Config) (run.Component, error) {
	access, err := p.dial(cfg, "kube-proxy")
	if err != nil {
		return nil, err
	}
	rules, err := proxy.New(config, proxy.Deps{Client: access, Log: p.log})
	if err != nil {
		return nil, err
	}
	return run.Together("proxy", access, rules), nil
}
