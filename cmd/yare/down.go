package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/yare-dev/yare/cmd/cluster"
)

func downCommand() *cobra.Command {
	var name string
	var keep, force bool
	c := &cobra.Command{
		Use: "down", GroupID: "cluster", Args: cobra.NoArgs,
		Short: "End a cluster and remove exactly what it made",
		Long: `End a cluster: its server and containers, and its mounts, network namespaces, links, addresses, nft tables,
cgroups and files. Nothing that Yare did not make is touched. It may be run again after a failure. One of several servers leaves the
cluster before, which goes on as long as a majority of the others is up.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := requireRoot(); err != nil {
				return err
			}
			h := cluster.Host{}
			r, err := h.Find(name)
			if err != nil {
				return err
			}
			p := newProgress(c.OutOrStdout())
			if !keep && !force {
				if err := leave(c.Context(), r, p); err != nil {
					return err
				}
			}
			if err := h.Remove(c.Context(), r, keep, p.step); err != nil {
				return err
			}
			if keep {
				p.done("cluster %q is down; its data stays in %s: 'yare up%s' resumes it", name, r.DataDir, nameFlag(name))
			} else {
				p.done("cluster %q is gone", name)
			}
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", cluster.DefaultName, "name of the cluster")
	c.Flags().BoolVar(&force, "force", false, "remove one of several servers here, whatever becomes of the others: they count it until 'yare server-remove' there")
	c.Flags().BoolVar(&keep, "keep-data", false, "keep its objects, images and volumes for the next 'yare up'")
	return c
}

// leave has one of several servers leave its cluster.
func leave(ctx context.Context, r *cluster.Record, p *progress) error {
	if _, err := os.Stat(filepath.Join(r.DataDir, "etcd", "peers")); err != nil {
		return nil // it never had others
	}
	if _, err := os.Stat(removedFile(r)); err == nil {
		return nil
	}
	hint := "\n  '--force' removes it here all the same, and on another server 'yare server-remove' takes it out of the cluster"
	if _, running := r.Server(); !running {
		return fmt.Errorf("cluster %q has other servers, and this one does not run, so it cannot leave them: 'yare up%s' first%s", r.Name, nameFlag(r.Name), hint)
	}
	var all []serverStatus
	if err := askServer(ctx, r, http.MethodGet, "", &all); err != nil {
		return fmt.Errorf("leave the other servers: %w%s", err, hint)
	}
	stay := staying(all)
	if stay == 0 {
		return nil
	}
	i := slices.IndexFunc(all, func(s serverStatus) bool { return s.Self })
	if i < 0 {
		return nil // it was removed
	}
	if stay == 1 {
		p.step("leave the other server, which is alone then")
	} else {
		p.step("leave the other servers")
	}
	if err := askServer(ctx, r, http.MethodDelete, all[i].Name, &struct{}{}); err != nil {
		return fmt.Errorf("leave the other servers: %w%s", err, hint)
	}
	return nil
}

// staying is how many other servers would be the cluster: one that is joining has not become one.
func staying(all []serverStatus) (n int) {
	for _, s := range all {
		if !s.Self && s.State != joiningState {
			n++
		}
	}
	return n
}
