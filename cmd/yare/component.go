package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/remote"
	"github.com/yare-dev/yare/oci/cli"
	"github.com/yare-dev/yare/run"
)

// componentCommands are the components one by one: each works with upstream's peers in the place of ours.
func componentCommands() []*cobra.Command {
	return []*cobra.Command{
		apiServerCommand(), controllerManagerCommand(), schedulerCommand(), proxyCommand(), kubeletCommand(), runtimeCommand(),
		ociCommand(), cniCommand(),
	}
}

// peer is how a component that runs alone reaches an API server, and how much it says.
type peer struct {
	kubeconfig, logLevel string

	log *slog.Logger
}

func (p *peer) addLog(c *cobra.Command) {
	c.Flags().StringVar(&p.logLevel, "log-level", "info", "debug, info, warn or error")
}

func (p *peer) add(c *cobra.Command) {
	c.Flags().StringVar(&p.kubeconfig, "kubeconfig", "", "file that says where the API server is and who we are to it")
	p.addLog(c)
}

// open makes the log.
func (p *peer) open() (err error) {
	p.log, err = Config{LogLevel: p.logLevel}.logger(os.Stderr)
	return err
}

// rest returns how the API server is reached.
func (p *peer) rest() (*rest.Config, error) {
	if p.kubeconfig == "" {
		return nil, errors.New("--kubeconfig is required: a file that names the API server and our credentials")
	}
	c, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", p.kubeconfig, err)
	}
	return c, nil
}

// dial returns a client for a component. Kinds in watched are kept in memory while it runs.
func (p *peer) dial(c *rest.Config, component string, watched ...remote.Watched) (*remote.Client, error) {
	return remote.Dial(c, remote.Options{Agent: component + "/" + kubernetesVersion, Log: p.log, Watched: watched})
}

// serve runs a component until ctx ends or it cannot go on.
func (p *peer) serve(ctx context.Context, c run.Component) error {
	notify, err := openNotify()
	if err != nil {
		return err
	}
	defer notify.close()
	p.log.Info("starting", "component", c.Name(), "version", version, "pid", os.Getpid())
	err = c.Run(ctx, func() {
		p.log.Info("ready", "component", c.Name())
		notify.say("ready")
		notify.close()
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", c.Name(), err)
	}
	p.log.Info("stopped", "component", c.Name())
	return nil
}

// election is the flag of components of which one of several works at a time.
type election struct{ on bool }

func (e *election) add(c *cobra.Command) {
	c.Flags().BoolVar(&e.on, "leader-elect", true, "work only while no other process of this kind does, also none of upstream's")
}

// leading makes c wait for the lease of upstream's component name. The lease is looked at where it is kept, not in a
// table, and through a client that outlives c.
func (e *election) leading(p *peer, cfg *rest.Config, name string, c run.Component) (run.Component, error) {
	if !e.on {
		return c, nil
	}
	access, err := p.dial(cfg, name)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	lease := &client.Lease{Client: access, Key: api.Key{Namespace: "kube-system", Name: name}, Identity: host + "_" + string(uuid.NewUUID())}
	return run.Leading(lease, run.Func(c.Name(), func(ctx context.Context, ready func()) error {
		p.log.Info("leading", "lease", lease.Key.String(), "identity", lease.Identity)
		return c.Run(ctx, ready)
	})), nil
}

// nodeName is the flag's value, or else the host's name as Nodes are named.
func nodeName(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	return strings.ToLower(host), nil
}

// prefixes parses address ranges.
func prefixes(flag string, list []string) (ps []netip.Prefix, err error) {
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", flag, err)
		}
		ps = append(ps, p.Masked())
	}
	return ps, nil
}

// families parses address ranges, of which there is at most one of each family.
func families(flag string, list []string) ([]netip.Prefix, error) {
	ps, err := prefixes(flag, list)
	if err == nil && (len(ps) > 2 || len(ps) == 2 && ps[0].Addr().Is4() == ps[1].Addr().Is4()) {
		err = fmt.Errorf("--%s: %s: give one range, or one of IPv4 and one of IPv6", flag, joined(ps))
	}
	return ps, err
}

// ociCommand is the OCI runtime with runc's command line, of which it takes care itself. The exit code of a container's process
// is that of ours.
func ociCommand() *cobra.Command {
	return &cobra.Command{
		Use: "oci", Short: "Create and run containers from OCI bundles, with runc's command line", GroupID: "component",
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			err := cli.Run(c.Context(), c.CommandPath(), version, args)
			var exit *cli.ExitError
			if errors.As(err, &exit) {
				if exit.Err != nil {
					fmt.Fprintln(os.Stderr, "yare:", mend(exit.Err))
				}
				return exitStatus(exit.Code)
			}
			return err
		},
	}
}

// runOCI is the program under the runtime's name: those who call it expect a program of its own.
func runOCI(args []string) int { return cli.Main(context.Background(), version, args) }
