package main

import (
	"github.com/spf13/cobra"

	"github.com/yare-dev/yare/cmd/cluster"
)

func downCommand() *cobra.Command {
	var name string
	var keep bool
	c := &cobra.Command{
		Use: "down", GroupID: "cluster", Args: cobra.NoArgs,
		Short: "End a cluster and remove exactly what it made",
		Long: `End a cluster: its server and containers, and its mounts, network namespaces, links, addresses, nft tables,
cgroups and files. Nothing that Yare did not make is touched. It may be run again after a failure.`,
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
	c.Flags().BoolVar(&keep, "keep-data", false, "keep its objects, images and volumes for the next 'yare up'")
	return c
}
