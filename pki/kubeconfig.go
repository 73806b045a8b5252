package pki

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/yare-dev/yare/run"
)

// lockTries times lockPause is how long a kubeconfig that another program has locked is waited for.
const (
	lockTries = 50
	lockPause = 20 * time.Millisecond
)

// Kubeconfig returns a self-contained kubeconfig with one cluster, user and context, all called name, for server (a
// URL) as identity i.
func (p *PKI) Kubeconfig(name, server string, i *Identity) *clientcmdapi.Config {
	key, cert := i.PEM()
	c := clientcmdapi.NewConfig()
	c.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: p.CA.PEM()}
	c.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	c.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	c.CurrentContext = name
	return c
}

// WriteKubeconfig puts c at path as a file of its own, 0600.
func WriteKubeconfig(path string, c *clientcmdapi.Config) error {
	data, err := clientcmd.Write(*c)
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	return writeIfChanged(path, data, 0o600)
}

// MergeKubeconfig adds c's entries to the kubeconfig at path, which need not exist, replacing those of the same
// name, and makes c's context the current one. Other entries stay as they are. It takes the lock that kubectl takes.
func MergeKubeconfig(ctx context.Context, path string, c *clientcmdapi.Config) error {
	return editKubeconfig(ctx, path, func(all *clientcmdapi.Config) bool {
		for name, v := range c.Clusters {
			all.Clusters[name] = v
		}
		for name, v := range c.AuthInfos {
			all.AuthInfos[name] = v
		}
		for name, v := range c.Contexts {
			all.Contexts[name] = v
		}
		all.CurrentContext = c.CurrentContext
		return true
	})
}

// RemoveContext takes the cluster, user and context called name out of the kubeconfig at path. Where it is the current context, the
// first of before that is there becomes it. It is no error when they or the file are not there.
func RemoveContext(ctx context.Context, path, name string, before ...string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return editKubeconfig(ctx, path, func(all *clientcmdapi.Config) bool {
		_, cluster := all.Clusters[name]
		_, user := all.AuthInfos[name]
		_, context := all.Contexts[name]
		delete(all.Clusters, name)
		delete(all.AuthInfos, name)
		delete(all.Contexts, name)
		current := all.CurrentContext == name
		if current {
			all.CurrentContext = ""
			for _, b := range slices.Backward(before) {
				if _, ok := all.Contexts[b]; ok {
					all.CurrentContext = b
				}
			}
		}
		return cluster || user || context || current
	})
}

// editKubeconfig applies change to the file under kubectl's lock and writes it when change says so.
func editKubeconfig(ctx context.Context, path string, change func(*clientcmdapi.Config) bool) error {
	// A link stays a link: what it points at is replaced.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make kubeconfig folder: %w", err)
	}
	unlock, err := lockKubeconfig(ctx, path)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := clientcmd.LoadFromFile(path)
	mode := os.FileMode(0o600)
	switch {
	case errors.Is(err, os.ErrNotExist):
		all = clientcmdapi.NewConfig()
	case err != nil:
		return fmt.Errorf("read kubeconfig %s: %w", path, err)
	default:
		if st, err := os.Stat(path); err == nil {
			mode = st.Mode().Perm()
		}
	}
	if !change(all) {
		return nil
	}
	data, err := clientcmd.Write(*all)
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	return writeFile(path, data, mode)
}

// lockKubeconfig creates path.lock, which is kubectl's way to keep others out.
func lockKubeconfig(ctx context.Context, path string) (unlock func(), err error) {
	name := path + ".lock"
	for range lockTries {
		var f *os.File
		if f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0); err == nil {
			_ = f.Close()
			return func() { _ = os.Remove(name) }, nil
		}
		if !errors.Is(err, os.ErrExist) {
			break
		}
		if err := run.Pause(ctx, lockPause); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("lock kubeconfig (remove %s if no program uses it): %w", name, err)
}
