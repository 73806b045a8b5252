package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	"github.com/yare-dev/yare/test/peers/pki"
)

// theirAPIServer starts etcd and kube-apiserver, with keys and certificates of a new authority.
func (c *Cluster) theirAPIServer(ctx context.Context) error {
	if err := c.theirKeys(); err != nil {
		return err
	}
	const etcd = "http://127.0.0.1:2379"
	err := c.theirs("etcd", "--data-dir", c.path("etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync")
	if err != nil {
		return err
	}
	keys := func(name string) string { return c.path("pki/" + name) }
	err = c.theirs("kube-apiserver",
		"--etcd-servers", etcd,
		"--secure-port", apiPort, "--advertise-address", c.host.Address.String(),
		"--tls-cert-file", keys("server.crt"), "--tls-private-key-file", keys("server.key"),
		"--client-ca-file", keys("ca.crt"),
		"--kubelet-client-certificate", keys("kubelet-client.crt"), "--kubelet-client-key", keys("kubelet-client.key"),
		"--kubelet-certificate-authority", keys("ca.crt"), "--kubelet-preferred-address-types", "InternalIP",
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file", keys("sa.pub"), "--service-account-signing-key-file", keys("sa.key"),
		"--service-cluster-ip-range", c.ranges.Addresses, "--service-node-port-range", c.ranges.NodePorts,
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--allow-privileged",
		"--proxy-client-cert-file", keys("front-proxy.crt"), "--proxy-client-key-file", keys("front-proxy.key"),
		"--requestheader-client-ca-file", keys("ca.crt"), "--requestheader-allowed-names", "front-proxy",
		"--requestheader-username-headers", "X-Remote-User", "--requestheader-group-headers", "X-Remote-Group",
		"--requestheader-extra-headers-prefix", "X-Remote-Extra-", "--enable-aggregator-routing",
		"--cert-dir", c.path("apiserver-certs"))
	if err != nil {
		return err
	}
	return c.answers(ctx)
}

// theirKeys makes what kubeadm would.
func (c *Cluster) theirKeys() error {
	ca, err := pki.New(c.path("pki"))
	if err != nil {
		return err
	}
	addresses := []netip.Addr{c.host.Address, netip.MustParseAddr(apiService), netip.MustParseAddr("127.0.0.1")}
	if _, err := ca.Server("server", "kube-apiserver", addresses, "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local", "localhost"); err != nil {
		return err
	}
	a := access{authority: ca.Files().Cert, authorityPEM: ca.PEM()}
	a.accountKey, a.accountsPub = ca.Accounts()
	if a.kubeletServing, err = ca.Server("kubelet-serving", "system:node:"+NodeName, addresses[:1], NodeName); err != nil {
		return err
	}
	c.access = a
	for _, u := range []struct {
		file, user, group string
		into              *string
	}{
		{"kubelet-client", "kube-apiserver-kubelet-client", "system:masters", nil},
		{"front-proxy", "front-proxy", "", nil},
		{"admin", "kubernetes-admin", "system:masters", &c.access.admin},
		{"controller-manager", "system:kube-controller-manager", "", &c.access.controllers},
		{"scheduler", "system:kube-scheduler", "", &c.access.scheduler},
		{"proxy", "system:kube-proxy", "", &c.access.proxy},
		{"kubelet", "system:node:" + NodeName, "system:nodes", &c.access.kubelet},
	} {
		var groups []string
		if u.group != "" {
			groups = []string{u.group}
		}
		files, err := ca.Client(u.file, u.user, groups...)
		if err != nil {
			return err
		}
		if u.into == nil {
			continue
		}
		if *u.into, err = c.kubeconfig(u.file, files); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) theirControllers(context.Context) error {
	return c.theirs("kube-controller-manager", "--kubeconfig", c.access.controllers,
		"--authentication-kubeconfig", c.access.controllers, "--authorization-kubeconfig", c.access.controllers,
		"--use-service-account-credentials", "--root-ca-file", c.access.authority, "--service-account-private-key-file", c.access.accountKey,
		"--allocate-node-cidrs", "--cluster-cidr", Pods, "--service-cluster-ip-range", Services, "--leader-elect=false",
		"--cert-dir", c.path("controller-manager-certs"))
}

func (c *Cluster) theirScheduler(context.Context) error {
	return c.theirs("kube-scheduler", "--kubeconfig", c.access.scheduler,
		"--authentication-kubeconfig", c.access.scheduler, "--authorization-kubeconfig", c.access.scheduler,
		"--leader-elect=false", "--cert-dir", c.path("scheduler-certs"))
}

func (c *Cluster) theirProxy(context.Context) error {
	err := c.write("kube-proxy.yaml", `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: %s
clusterCIDR: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, NodeName, Pods, c.access.proxy)
	if err != nil {
		return err
	}
	return c.theirs("kube-proxy", "--config", c.path("kube-proxy.yaml"))
}

func (c *Cluster) theirKubelet(ctx context.Context) error {
	err := c.write("kubelet.yaml", `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: Webhook}
tlsCertFile: %s
tlsPrivateKeyFile: %s
cgroupDriver: cgroupfs
cgroupRoot: %s
failCgroupV1: false
failSwapOn: false
clusterDomain: cluster.local
clusterDNS: [%s]
resolvConf: %s
containerRuntimeEndpoint: unix://%s
podLogsDir: %s
volumePluginDir: /var/lib/kubelet-volume-plugins
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, imagefs.available: 1%%}
imageGCHighThresholdPercent: 100
`, c.access.authority, c.access.kubeletServing.Cert, c.access.kubeletServing.Key, c.host.CgroupRoot(), dnsService, c.path("resolv.conf"),
		c.socket, c.path("pod-logs"))
	if err != nil {
		return err
	}
	return c.theirs("kubelet", "--config", c.path("kubelet.yaml"), "--kubeconfig", c.access.kubelet, "--root-dir", c.path("kubelet"),
		"--hostname-override", NodeName, "--node-ip", c.host.Address.String(), "--cert-dir", c.path("kubelet-certs"))
}

// theirRuntime starts containerd and gives it the images.
func (c *Cluster) theirRuntime(ctx context.Context) error {
	c.socket = c.path("containerd.sock")
	err := c.write("containerd.toml", `version = 3
root = %q
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = %q
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q
[plugins."io.containerd.cri.v1.images".registry]
config_path = %q
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
conf_dir = %q
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
`, c.path("containerd"), c.socket, PauseImage, c.path("registries"), c.path("cni"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.path("cni"), 0o755); err != nil {
		return err
	}
	err = c.write("cni/10-pods.conflist", `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
 {"type": "ptp", "ipam": {"type": "host-local", "dataDir": "/run/cni-addresses", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
`, nodePods)
	if err != nil {
		return err
	}
	// Whatever registry there is on the other side of the link speaks plain HTTP.
	registry := c.host.Outside.String() + ":" + RegistryPort
	if err := os.MkdirAll(c.path("registries/"+registry), 0o755); err != nil {
		return err
	}
	if err := c.write("registries/"+registry+"/hosts.toml", "server = %q\n", "http://"+registry); err != nil {
		return err
	}
	if err := c.theirs("containerd", "--config", c.path("containerd.toml")); err != nil {
		return err
	}
	archive, err := writeImages(c.host.Dir, c.programs.Path("web"))
	if err != nil {
		return err
	}
	return c.until(ctx, "containerd", func() error {
		out, err := c.host.Command(c.programs.Path("ctr"), "--address", c.socket, "--namespace", "k8s.io", "images", "import", archive).CombinedOutput()
		if err != nil {
			return fmt.Errorf("import images: %w: %s", err, out)
		}
		return nil
	})
}

// write writes a configuration file into the host's folder.
func (c *Cluster) write(name, format string, args ...any) error {
	return os.WriteFile(c.path(name), fmt.Appendf(nil, format, args...), 0o600)
}
