package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

func (h Host) usualKubelet() string {
	if h.UsualKubelet == "" {
		return "/var/lib/kubelet"
	}
	return h.UsualKubelet
}

// ownKubelet is where the cluster's kubelet keeps its files.
func (r *Record) ownKubelet() string { return filepath.Join(r.DataDir, "kubelet") }

// KubeletPath is the path that the cluster's kubelet is known by.
func (r *Record) KubeletPath() string { return cmp.Or(r.KubeletDir, r.ownKubelet()) }

// chooseKubeletDir returns the path that the kubelet of a new cluster is known by: the usual one where nobody has it.
func (h Host) chooseKubeletDir(r *Record, others []*Record) string {
	usual := h.usualKubelet()
	taken := slices.ContainsFunc(others, func(o *Record) bool { return o.KubeletDir == usual })
	if _, err := os.Lstat(usual); taken || !errors.Is(err, fs.ErrNotExist) {
		return r.ownKubelet()
	}
	return usual
}

// MakeKubeletDir makes the folder of the cluster's kubelet and the link to it, if it is to have one, and returns the path that it is known by.
// Drivers of storage remember this path, so it never changes. Where it is not the usual one, note says what to do about that.
func (h Host) MakeKubeletDir(r *Record) (dir, note string, err error) {
	own, usual := r.ownKubelet(), h.usualKubelet()
	if err := os.MkdirAll(own, 0o750); err != nil {
		return "", "", err
	}
	if r.KubeletDir != usual {
		return own, fmt.Sprintf("%s was another's when the cluster was made: tell drivers of storage and device plugins that this cluster's kubelet has its folder in %s", usual, own), nil
	}
	if err := os.Symlink(own, usual); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", "", err
	}
	if to, err := os.Readlink(usual); err != nil || to != own {
		return "", "", fmt.Errorf("%s has to lead to %s, the folder of this cluster's kubelet, and somebody else has put something there: move it away", usual, own)
	}
	return usual, "", nil
}

// removeKubeletLink removes the link that leads to the cluster's kubelet.
func (h Host) removeKubeletLink(_ context.Context, r *Record) error {
	if to, err := os.Readlink(h.usualKubelet()); err != nil || to != r.ownKubelet() {
		return nil // there is none, or it is not ours
	}
	if err := os.Remove(h.usualKubelet()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
