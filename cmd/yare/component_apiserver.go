package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/pki"
	"github.com/yare-dev/yare/run"
)

// apiServerFlags are those of `yare apiserver`.
type apiServerFlags struct {
	peer
	config    Config
	dataDir   string
	advertise string
	services  []string
	nodePorts string
	port      int
	ephemeral bool
}

func apiServerCommand() *cobra.Command {
	f := &apiServerFlags{config: defaultConfig()}
	c := &cobra.Command{
		Use: "apiserver", GroupID: "component", Args: cobra.NoArgs,
		Short: "The API server, with an etcd member of its own or over etcd elsewhere",
		Long: `The API server, with an etcd member of its own or over etcd elsewhere. It makes keys, certificates and these
kubeconfigs in its data folder:

  admin.kubeconfig                 may do everything
  controller-manager.kubeconfig    upstream's system:kube-controller-manager
  scheduler.kubeconfig             system:kube-scheduler
  proxy.kubeconfig                 system:kube-proxy

The certificate authority is pki/ca.crt, the key of service account tokens pki/sa.pem. Nodes get theirs from 'yare node-credentials'.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.open(); err != nil {
				return err
			}
			s, err := f.server()
			if err != nil {
				return err
			}
			defer s.close()
			all, err := s.apiServerAlone(c.Context())
			if err != nil {
				return err
			}
			return f.serve(c.Context(), all)
		},
	}
	l := c.Flags()
	l.StringVar(&f.dataDir, "data-dir", "/var/lib/yare/apiserver", "folder of keys, kubeconfigs and the etcd member")
	l.StringSliceVar(&f.config.EtcdEndpoints, "etcd-servers", nil, "etcd elsewhere, in place of a member of its own: https://HOST:PORT")
	l.StringVar(&f.config.EtcdCAFile, "etcd-cafile", "", "certificate authority of etcd")
	l.StringVar(&f.config.EtcdCertFile, "etcd-certfile", "", "our certificate for etcd")
	l.StringVar(&f.config.EtcdKeyFile, "etcd-keyfile", "", "its key")
	l.BoolVar(&f.ephemeral, "ephemeral", false, "do not wait for the disk; a power cut may lose the cluster")
	l.IntVar(&f.port, "secure-port", 6443, "port to serve HTTPS on")
	l.StringVar(&f.advertise, "advertise-address", "", "address by which others reach us (default: that of the default route's link)")
	l.StringSliceVar(&f.config.APINames, "cert-names", nil, "further names and addresses for our certificate")
	l.StringSliceVar(&f.services, "service-cluster-ip-range", []string{"10.43.0.0/16"}, "addresses of Services: one range, or two of different families, the main one first")
	l.StringVar(&f.nodePorts, "service-node-port-range", "30000-32767", "ports of Services on nodes")
	f.config.APIServer.flags(c)
	f.addLog(c)
	return c
}

// server checks the flags and returns a server of which only the API server is made.
func (f *apiServerFlags) server() (*server, error) {
	data, err := filepath.Abs(f.dataDir)
	if err != nil {
		return nil, err
	}
	r := &cluster.Record{Name: "apiserver", DataDir: data, APIPort: f.port, Ephemeral: f.ephemeral}
	// The administrator's file is the only kubeconfig that is touched.
	r.Kubeconfig = adminKubeconfig(r)
	var errs []error
	if ranges, err := prefixes("service-cluster-ip-range", f.services); err != nil {
		errs = append(errs, err)
	} else {
		cluster.CheckServiceRanges(ranges, func(_, format string, args ...any) {
			errs = append(errs, fmt.Errorf("--service-cluster-ip-range: "+format, args...))
		})
		r.SetServiceCIDRs(ranges)
	}
	if n, _ := fmt.Sscanf(f.nodePorts, "%d-%d", &r.NodePorts[0], &r.NodePorts[1]); n != 2 || r.NodePorts[0] < 1 ||
		r.NodePorts[1] < r.NodePorts[0] || r.NodePorts[1] > 65535 {
		errs = append(errs, fmt.Errorf("--service-node-port-range: %q is not FIRST-LAST", f.nodePorts))
	}
	if f.port < 1 || f.port > 65535 {
		errs = append(errs, fmt.Errorf("--secure-port: %d is not a port", f.port))
	}
	if f.advertise != "" {
		if f.config.AdvertiseAddress, err = netip.ParseAddr(f.advertise); err != nil {
			errs = append(errs, fmt.Errorf("--advertise-address: %w", err))
		} else if f.config.AdvertiseAddress.IsLoopback() {
			errs = append(errs, errors.New("--advertise-address: pods and other hosts cannot reach a loopback address"))
		}
	}
	f.config.LogLevel = f.logLevel
	if err := errors.Join(append(errs, f.config.validate())...); err != nil {
		return nil, err
	}
	return newServer(f.config, r, f.log, &notifier{}), nil
}

// apiServerAlone is the control plane of compose without its loops.
func (s *server) apiServerAlone(ctx context.Context) (run.Component, error) {
	if err := s.prepare(ctx, s.record.ServiceCIDRs()[:1]); err != nil {
		return nil, err
	}
	for name, identity := range map[string]*pki.Identity{
		"controller-manager": s.pki.Controllers, "scheduler": s.pki.Scheduler, "proxy": s.pki.Proxy,
	} {
		c := s.pki.Kubeconfig(s.record.Context(), apiURL(s.record), identity)
		if err := pki.WriteKubeconfig(filepath.Join(s.record.DataDir, name+".kubeconfig"), c); err != nil {
			return nil, err
		}
	}
	s.metrics = prometheus.NewRegistry()
	state, err := s.state(nil)
	if err != nil {
		return nil, err
	}
	if err := s.apiServer(); err != nil {
		return nil, err
	}
	return run.InOrder("apiserver", append(state, run.GiveBack(), s.watch(s.customResources()), s.watch(s.api), s.watch(s.bootstrap()), s.aggregator, run.Together("servers", s.presence(), s.endpoints()), run.Together("settings", s.files...))...), nil
}
