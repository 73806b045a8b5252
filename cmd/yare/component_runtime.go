package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/cni/plugins"
	"github.com/yare-dev/yare/cri/criserver"
	"github.com/yare-dev/yare/image"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/proxy/netpol"
	"github.com/yare-dev/yare/run"
)

// containerSide is everything below the CRI: network, images, runtime.
type containerSide struct {
	network plugins.Config // the built-in one; without ranges there is none
	runtime criserver.Config
	images  image.Config
	// cniConfDir and cniBinDir are where a CNI configuration is looked for that takes over; runDir keeps what plugins need.
	cniConfDir, cniBinDir, runDir string
	log                           *slog.Logger

	builtin *plugins.Network // once open
}

// policies holds the built-in network's pods to the network policies. To be called before open.
func (c *containerSide) policies(table string, dns []netip.Addr, access client.Reader) (run.Component, error) {
	e, err := netpol.New(netpol.Config{Table: table, Ranges: c.network.Ranges, Cluster: c.network.ClusterCIDRs, DNS: dns}, netpol.Deps{Client: access, Log: c.log,
		Attached: func() ([]netpol.Attachment, error) {
			pods, err := c.builtin.Attached()
			all := make([]netpol.Attachment, len(pods))
			for i, p := range pods {
				all[i] = netpol.Attachment(p)
			}
			return all, err
		}})
	if err != nil {
		return nil, err
	}
	c.network.Guard = guard{e}
	return e, nil
}

// guard has the built-in network tell of its pods.
type guard struct{ *netpol.Enforcer }

// Attach implements plugins.Guard.
func (g guard) Attach(ctx context.Context, p plugins.Attached) error {
	return g.Enforcer.Attach(ctx, netpol.Attachment(p))
}

// open makes the parts, of which the network comes first. The caller closes init when they have ended.
func (c *containerSide) open() (network run.Component, server *criserver.Server, init *oci.Init, err error) {
	foreign := cni.NewExec(cni.ExecConfig{
		ConfDir: c.cniConfDir, BinDirs: []string{c.cniBinDir}, CacheDir: filepath.Join(c.runDir, "cni"),
		NetNSDir: filepath.Join(c.runDir, "cni-netns"),
	})
	choice := cni.NewSelect(foreign, nil, c.log)
	network = run.Together("network")
	if len(c.network.Ranges) > 0 {
		builtin, err := plugins.New(c.network, c.log)
		if err != nil {
			return nil, nil, nil, err
		}
		choice, network, c.builtin = cni.NewSelect(foreign, builtin, c.log), builtin, builtin
	}
	images, err := image.Open(c.images, c.log)
	if err != nil {
		return nil, nil, nil, err
	}
	if init, err = oci.OpenInit(); err != nil {
		return nil, nil, nil, err
	}
	c.runtime.Version = version
	server, err = criserver.New(c.runtime, criserver.Deps{Images: images, Network: choice, Init: init, Log: c.log})
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("container runtime: %w", err), init.Close())
	}
	return network, server, init, nil
}

// runtimeFlags are those of `yare runtime`.
type runtimeFlags struct {
	peer
	socket, dataDir, runDir, cgroup string
	pods, cluster                   []string
	confDir, binDir                 string
	handlers                        map[string]criserver.Handler
	selinux                         bool
}

func runtimeCommand() *cobra.Command {
	f := &runtimeFlags{}
	c := &cobra.Command{
		Use: "runtime", GroupID: "component", Args: cobra.NoArgs,
		Short: "The container runtime: CRI v1 on a unix socket, for upstream's kubelet and crictl",
		Long: `The container runtime: CRI v1 on a unix socket, for upstream's kubelet and crictl. SIGTERM ends the server and leaves the
containers running; the next one adopts them.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := errors.Join(requireRoot(), f.open()); err != nil {
				return err
			}
			side, err := f.side()
			if err != nil {
				return err
			}
			network, server, init, err := side.open()
			if err != nil {
				return err
			}
			defer init.Close()
			return f.serve(c.Context(), run.InOrder("runtime", network, server))
		},
	}
	l := c.Flags()
	l.StringVar(&f.socket, "socket", "/run/yare-runtime/cri.sock", "unix socket to serve CRI v1 on")
	l.StringVar(&f.dataDir, "data-dir", "/var/lib/yare-runtime", "folder of images and containers")
	l.StringVar(&f.runDir, "run-dir", "/run/yare-runtime", "folder of what ends with a reboot")
	l.StringVar(&f.cgroup, "cgroup-parent", "/yare-runtime", "cgroup of pods that name none")
	l.StringSliceVar(&f.pods, "pod-cidr", nil, "this host's range of pods' addresses (default: only a CNI configuration gives pods a network)")
	l.StringSliceVar(&f.cluster, "cluster-cidr", nil, "ranges of all pods, which are reached without masquerading (default: --pod-cidr)")
	addHandlers(c, &f.handlers)
	addSELinux(c, &f.selinux)
	l.StringVar(&f.confDir, "cni-conf-dir", "/etc/cni/net.d", "folder of CNI configurations, which take over from the built-in network")
	l.StringVar(&f.binDir, "cni-bin-dir", "/opt/cni/bin", "folder of CNI plugins")
	f.addLog(c)
	return c
}

// addSELinux is the flag that stands for the setting seLinux.
func addSELinux(c *cobra.Command, on *bool) {
	c.Flags().BoolVar(on, "selinux", *on, "give pods the contexts that the host's SELinux policy has for containers")
}

// addHandlers is the flag that stands for the setting runtimeHandlers.
func addHandlers(c *cobra.Command, handlers *map[string]criserver.Handler) {
	c.Flags().Func("runtime-handler", "NAME=PATH of a further OCI runtime for RuntimeClasses with that handler, and after spaces its options: "+
		"'gvisor=/usr/bin/runsc --platform=systrap'; may be repeated", func(text string) error {
		name, program, _ := strings.Cut(text, "=")
		words := strings.Fields(program)
		if len(words) == 0 {
			return errors.New("use NAME=PATH")
		}
		one := map[string]criserver.Handler{name: {Path: words[0], Options: words[1:]}}
		var errs []error
		criserver.CheckHandlers(one, func(field, format string, args ...any) { errs = append(errs, fmt.Errorf(field+": "+format, args...)) })
		if _, twice := (*handlers)[name]; twice {
			errs = append(errs, fmt.Errorf("%s is there twice", name))
		}
		if *handlers == nil {
			*handlers = map[string]criserver.Handler{}
		}
		maps.Copy(*handlers, one)
		return errors.Join(errs...)
	})
}

// side checks the flags.
func (f *runtimeFlags) side() (*containerSide, error) {
	for _, p := range []*string{&f.socket, &f.dataDir, &f.runDir} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, err
		}
		*p = abs
	}
	pods, err := prefixes("pod-cidr", f.pods)
	if err != nil {
		return nil, err
	}
	others, err := prefixes("cluster-cidr", f.cluster)
	if err != nil {
		return nil, err
	}
	return &containerSide{
		network: plugins.Config{Name: filepath.Base(f.dataDir), Dir: filepath.Join(f.runDir, "net"), Ranges: pods, ClusterCIDRs: others, Pool: 4},
		runtime: criserver.Config{Dir: filepath.Join(f.dataDir, "containers"), RunDir: filepath.Join(f.runDir, "s"),
			Socket: f.socket, CgroupParent: f.cgroup, Handlers: f.handlers, SELinux: f.selinux},
		images:     imageConfig(&cluster.Record{DataDir: f.dataDir}),
		cniConfDir: f.confDir, cniBinDir: f.binDir, runDir: f.runDir, log: f.log,
	}, nil
}
