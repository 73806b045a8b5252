package cluster

import (
	"context"
	"fmt"
	"os"

	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/test/peers/pki"
)

// ourAPIServer starts `yare apiserver`, which makes keys, certificates and kubeconfigs by itself.
func (c *Cluster) ourAPIServer(ctx context.Context) error {
	data := c.path("apiserver")
	err := c.yare("apiserver", "--data-dir", data, "--secure-port", apiPort, "--advertise-address", c.host.Address.String(),
		"--service-cluster-ip-range", c.ranges.Addresses, "--service-node-port-range", c.ranges.NodePorts, "--ephemeral")
	if err != nil {
		return err
	}
	c.access = access{authority: data + "/pki/ca.crt", accountKey: data + "/pki/sa.pem", accountsPub: data + "/pki/sa.pub"}
	// The administrator's file names the server by a loopback address, which nobody has outside.
	if err := c.until(ctx, "kubeconfigs", func() error { return c.rewrite(data) }); err != nil {
		return err
	}
	if err := c.answers(ctx); err != nil {
		return err
	}
	return c.nodeCredentials(data)
}

// rewrite makes kubeconfigs with the server's address on the link out of those in data.
func (c *Cluster) rewrite(data string) (err error) {
	if c.access.authorityPEM, err = os.ReadFile(c.access.authority); err != nil {
		return err
	}
	for name, into := range map[string]*string{
		"admin": &c.access.admin, "controller-manager": &c.access.controllers, "scheduler": &c.access.scheduler, "proxy": &c.access.proxy,
	} {
		if *into, err = c.atLink(data+"/"+name+".kubeconfig", name); err != nil {
			return err
		}
	}
	return nil
}

// credentials is the part of the output of `yare node-credentials` that a foreign kubelet can use.
type credentials struct {
	Kubelet string `json:"kubelet"` // key and certificate
	Serving string `json:"serving"`
}

func (c *Cluster) nodeCredentials(data string) error {
	text, err := c.host.Command(c.programs.Yare, "node-credentials", NodeName, "--data-dir", data, "--server", c.url,
		"--address", c.host.Address.String(), "--cluster-cidr", Pods, "--cluster-dns", dnsService).Output()
	if err != nil {
		return fmt.Errorf("node credentials: %w", err)
	}
	if err := os.WriteFile(c.path("node.join"), text, 0o600); err != nil {
		return err
	}
	var j credentials
	if err := yaml.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("node credentials: %w", err)
	}
	if c.access.kubelet, err = c.writeKubeconfig("kubelet", []byte(j.Kubelet), []byte(j.Kubelet)); err != nil {
		return err
	}
	c.access.kubeletServing = pki.Files{Cert: c.path("serving.pem"), Key: c.path("serving.pem")}
	return os.WriteFile(c.path("serving.pem"), []byte(j.Serving), 0o600)
}

func (c *Cluster) ourControllers(context.Context) error {
	return c.yare("controller-manager", "--kubeconfig", c.access.controllers, "--use-service-account-credentials", "--cluster-cidr", Pods)
}

func (c *Cluster) ourScheduler(context.Context) error {
	return c.yare("scheduler", "--kubeconfig", c.access.scheduler)
}

func (c *Cluster) ourProxy(context.Context) error {
	return c.yare("proxy", "--kubeconfig", c.access.proxy, "--hostname-override", NodeName, "--cluster-cidr", Pods)
}

func (c *Cluster) ourKubelet(context.Context) error {
	err := c.write("yare-kubelet.yaml", "nodeName: %s\nnodeIPs: [%s]\nrootDir: %s\nlogDir: %s\ncgroupRoot: %s\nclusterDNS: [%s]\nresolvConf: %s\n",
		NodeName, c.host.Address, c.path("kubelet"), c.path("pod-logs"), c.host.CgroupRoot(), dnsService, c.path("resolv.conf"))
	if err != nil {
		return err
	}
	args := []string{"--config", c.path("yare-kubelet.yaml"), "--runtime-endpoint", "unix://" + c.socket}
	if c.plan.APIServer == Ours {
		return c.yare("kubelet", append(args, "--join", c.path("node.join"))...)
	}
	return c.yare("kubelet", append(args, "--kubeconfig", c.access.kubelet,
		"--tls-cert-file", c.access.kubeletServing.Cert, "--tls-private-key-file", c.access.kubeletServing.Key)...)
}

// ourRuntime starts `yare runtime` with the images.
func (c *Cluster) ourRuntime(ctx context.Context) error {
	c.socket = "/run/yare-runtime/cri.sock"
	archive, err := writeImages(c.host.Dir, c.programs.Path("web"))
	if err != nil {
		return err
	}
	data := c.path("runtime")
	out, err := c.host.Command(c.programs.Yare, "image", "import", "--data-dir", data, archive).CombinedOutput()
	if err != nil {
		return fmt.Errorf("import images: %w: %s", err, out)
	}
	err = c.yare("runtime", "--socket", c.socket, "--data-dir", data, "--run-dir", "/run/yare-runtime",
		"--cgroup-parent", c.host.CgroupRoot()+"/runtime", "--pod-cidr", nodePods, "--cluster-cidr", Pods, "--cni-conf-dir", c.path("no-cni"))
	if err != nil {
		return err
	}
	return c.until(ctx, "the runtime's socket", func() error { return c.host.Command("test", "-S", c.socket).Run() })
}
