package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// cluster is a fresh cluster of ours.
type cluster struct {
	name       string
	yare       string
	dir        string
	kubeconfig string
	out        io.Writer
}

// settings are those of clusters by their families.
var settings = map[string]string{
	"":   "",
	"46": "podCIDRs: [10.242.0.0/16, 'fd42:c::/56']\nserviceCIDRs: [10.243.0.0/16, 'fd43:c::/112']\n",
	"64": "podCIDRs: ['fd42:c::/56', 10.242.0.0/16]\nserviceCIDRs: ['fd43:c::/112', 10.243.0.0/16]\n",
	"6":  "podCIDRs: ['fd42:c::/56']\nserviceCIDRs: ['fd43:c::/112']\n",
}

// upCluster starts a cluster with its data below dir. What a killed run left of one is removed first.
func upCluster(ctx context.Context, w wish, dir string, out io.Writer) (*cluster, error) {
	c := &cluster{name: w.cluster, yare: w.yare, dir: dir, kubeconfig: filepath.Join(dir, "kubeconfig"), out: out}
	if err := exec.CommandContext(ctx, c.yare, "status", "--name", c.name).Run(); err == nil {
		if err := c.yareDo(ctx, "down", "--name", c.name); err != nil {
			return nil, err
		}
	}
	args := []string{"up", "--name", c.name, "--data-dir", c.data(), "--kubeconfig", c.kubeconfig, "--ephemeral"}
	if text := settings[w.families]; text != "" {
		file := filepath.Join(dir, "settings.yaml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return nil, err
		}
		args = append(args, "--config", file)
	}
	return c, c.yareDo(ctx, args...)
}

func (c *cluster) data() string { return filepath.Join(c.dir, "cluster") }

// version is what the program says of itself.
func (c *cluster) version(ctx context.Context) string {
	text, err := exec.CommandContext(ctx, c.yare, "--version").Output()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	return strings.TrimPrefix(line, "yare version ")
}

// down removes the cluster and keeps its log beside the reports.
func (c *cluster) down(ctx context.Context) error {
	log, err := os.ReadFile(filepath.Join(c.data(), "server.log"))
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, "server.log"), log, 0o600)
	}
	return errors.Join(err, c.yareDo(ctx, "down", "--name", c.name))
}

func (c *cluster) yareDo(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, c.yare, args...)
	cmd.Stdout, cmd.Stderr = c.out, c.out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("yare %s: %w", args[0], err)
	}
	return nil
}
