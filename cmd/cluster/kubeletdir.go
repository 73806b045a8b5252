package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

func (h Host) usualKubelet() string {
	if h.UsualKubelet == "" {
		return "/var/lib/kubelet"
	}
	return h.UsualKubelet
}

// kubeletDir is where the cluster's kubelet keeps its files.
func (r *Record) kubeletDir() string { return filepath.Join(r.DataDir, "kubelet") }

// KubeletDir makes the folder of the cluster's kubelet and returns the path that it is to be known by. What is made for nodes, above all
// drivers of storage, looks for the kubelet in /var/lib/kubelet: where nothing is, a link leads from there to the first cluster of the host, and
// that is the path. Otherwise it is the folder below the cluster's own, and note says what to do about it.
func (h Host) KubeletDir(r *Record) (dir, note string, err error) {
	own, usual := r.kubeletDir(), h.usualKubelet()
	if err := os.MkdirAll(own, 0o750); err != nil {
		return "", "", err
	}
	err = os.Symlink(own, usual)
	switch to, _ := os.Readlink(usual); {
	case to == own:
		return usual, "", nil
	case err != nil && !errors.Is(err, fs.ErrExist):
		return own, fmt.Sprintf("%v; tell drivers of storage that the kubelet's folder is %s", err, own), nil
	case to != "":
		return own, fmt.Sprintf("%s leads to %s: tell drivers of storage that this cluster's kubelet has its folder in %s", usual, to, own), nil
	}
	return own, fmt.Sprintf("%s belongs to somebody else: tell drivers of storage that this cluster's kubelet has its folder in %s, "+
		"or move it away and start the cluster again", usual, own), nil
}

// removeKubeletLink removes the link that leads to the cluster's kubelet.
func (h Host) removeKubeletLink(_ context.Context, r *Record) error {
	if to, err := os.Readlink(h.usualKubelet()); err != nil || to != r.kubeletDir() {
		return nil // there is none, or it is not ours
	}
	if err := os.Remove(h.usualKubelet()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
