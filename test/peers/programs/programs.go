// Package programs builds upstream's programs, unchanged, from the versions in this module's go.mod, and keeps them in
// the cache under the digest of go.sum.
//
// Kubernetes and etcd are built from this module, so that the packages are shared with test/conformance in Go's build
// cache. containerd has a module of its own (the folder containerd): it is built with the versions that it chose.
package programs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Programs is a folder of built programs.
type Programs struct{ Dir string }

// Path returns the program of the given name.
func (p Programs) Path(name string) string { return filepath.Join(p.Dir, name) }

// set is what is built from one module.
type set struct {
	module   string // folder below this module
	version  string // module whose version the programs are told
	packages []string
	tell     func(version string) string // linker flags
}

var (
	apiServer    = set{module: ".", version: "k8s.io/kubernetes", tell: kubernetesVersion, packages: []string{"k8s.io/kubernetes/cmd/kube-apiserver"}}
	controlPlane = set{
		module: ".", version: "k8s.io/kubernetes", tell: kubernetesVersion,
		packages: []string{"k8s.io/kubernetes/cmd/kube-controller-manager", "k8s.io/kubernetes/cmd/kube-scheduler"},
	}
	etcd = set{module: ".", version: "go.etcd.io/etcd/server/v3", packages: []string{"go.etcd.io/etcd/server/v3"}}
	node = set{
		module: ".", version: "k8s.io/kubernetes", tell: kubernetesVersion,
		packages: []string{"k8s.io/kubernetes/cmd/kubelet", "k8s.io/kubernetes/cmd/kube-proxy"},
	}
	containerd = set{
		module: "containerd", version: "github.com/containerd/containerd/v2",
		packages: []string{"github.com/containerd/containerd/v2/cmd/containerd", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr"},
		tell: func(v string) string { return "-X github.com/containerd/containerd/v2/version.Version=v" + v },
	}
)

// own is our program for the images of the scenario. It is built each time: the go command knows whether it must.
const own = "github.com/yare-dev/yare/test/peers/cluster/web"

// kubernetesVersion tells Kubernetes' programs which release they are, as the official ones are told.
func kubernetesVersion(v string) string {
	n := strings.Split(v, ".")
	const at = "-X k8s.io/component-base/version."
	return at + "gitVersion=v" + v + " " + at + "gitMajor=" + n[0] + " " + at + "gitMinor=" + n[1]
}

// APIServer builds kube-apiserver and etcd.
func APIServer(ctx context.Context, module string, out io.Writer) (Programs, error) {
	return build(ctx, module, out, etcd, apiServer)
}

// All builds every program: those of APIServer, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, containerd, its shim
// and its ctr, and the program of the scenario's images.
func All(ctx context.Context, module string, out io.Writer) (Programs, error) {
	p, err := build(ctx, module, out, etcd, apiServer, controlPlane, node, containerd)
	if err == nil {
		_, err = goCommand(ctx, module, out, "build", "-trimpath", "-ldflags=-s -w", "-o", p.Path(nameOf(own)), own)
	}
	return p, err
}

// build returns the programs from the cache after building those that are not there. module is the folder of this
// module.
func build(ctx context.Context, module string, out io.Writer, sets ...set) (Programs, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return Programs{}, err
	}
	digest := sha256.New()
	for _, file := range []string{"go.sum", "containerd/go.sum"} {
		sums, err := os.ReadFile(filepath.Join(module, file))
		if err != nil {
			return Programs{}, err
		}
		digest.Write(sums)
	}
	p := Programs{Dir: filepath.Join(cache, "yare-peers", "programs-"+hex.EncodeToString(digest.Sum(nil))[:12])}
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return Programs{}, err
	}
	for _, s := range sets {
		if err := p.buildSet(ctx, module, s, out); err != nil {
			return Programs{}, err
		}
	}
	return p, nil
}

// buildSet builds the programs of a set that are not there, each under its own name: the last part of its path that is no
// version and no "server".
func (p Programs) buildSet(ctx context.Context, module string, s set, out io.Writer) error {
	var version string
	for _, pkg := range s.packages {
		path := p.Path(nameOf(pkg))
		if _, err := os.Stat(path); err == nil {
			continue
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		folder := filepath.Join(module, s.module)
		if version == "" {
			v, err := goCommand(ctx, folder, out, "list", "-m", "-f", "{{.Version}}", s.version)
			if err != nil {
				return err
			}
			version = strings.TrimPrefix(strings.TrimSpace(v), "v")
		}
		flags := "-ldflags=-s -w"
		if s.tell != nil {
			flags += " " + s.tell(version)
		}
		fmt.Fprintf(out, "building upstream's %s %s (once for each version; minutes)\n", nameOf(pkg), version)
		if _, err := goCommand(ctx, folder, out, "build", "-p", "2", flags, "-o", path+".part", pkg); err != nil {
			return err
		}
		if err := os.Rename(path+".part", path); err != nil {
			return err
		}
	}
	return nil
}

func nameOf(pkg string) string {
	if strings.HasPrefix(pkg, "go.etcd.io/etcd/server/") {
		return "etcd"
	}
	return pkg[strings.LastIndex(pkg, "/")+1:]
}

// goCommand runs the go command in dir and returns what it prints; its complaints go to out.
func goCommand(ctx context.Context, dir string, out io.Writer, args ...string) (string, error) {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir, c.Stderr = dir, out
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	printed, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return string(printed), nil
}
