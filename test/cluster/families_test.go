package cluster_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of a link of the test's own, by which this host is reached whatever others it has.
const host4, host6 = "198.18.44.1", "fd77:44::1"

// hostLink makes that link, with a default route after all others: without any the host's own connections to Services find no way.
func hostLink(t *testing.T) {
	t.Helper()
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "yaretest0"}, PeerName: "yaretest1"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(l); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"yaretest0", "yaretest1"} {
		end, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(end)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, cidr := range []string{host4 + "/24", host6 + "/64"} {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			t.Fatal(err)
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, a); err != nil {
			t.Fatal(err)
		}
	}
	last := &netlink.Route{LinkIndex: l.Index, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Priority: 1 << 20}
	if err := netlink.RouteAdd(last); err != nil {
		t.Fatal(err)
	}
}

const families = `
apiVersion: v1
kind: ConfigMap
metadata: {name: hello}
data: {greeting: hi}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      volumes: [{name: hello, configMap: {name: hello}}]
      containers:
      - name: hello
        image: hello:1
        ports: [{containerPort: 8080}]
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}, {name: VERSION, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}]
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: hello, mountPath: /etc/hello}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: hello, image: "hello:1", args: [idle]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ipFamilyPolicy: PreferDualStack, type: NodePort, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec: {selector: {app: web}, ipFamilyPolicy: PreferDualStack, type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 7080, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec: {selector: {app: web}, ipFamilyPolicy: PreferDualStack, clusterIP: None, ports: [{port: 80, targetPort: 8080}]}
`

// TestFamilies has clusters of two families, either of them first, and of IPv6 alone: pods and Services are reached by each family that there is,
// by name, by cluster IP, by node port and by a load balancer's address, before and after the server is killed; policies hold; and nothing is left.
func TestFamilies(t *testing.T) {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skip("this host's kernel has IPv6 off")
	}
	hostLink(t)
	const four, six = "10.242.0.0/16 10.244.0.0/16 " + host4, "fd42:44::/56 fd43:44::/112 " + host6
	for name, order := range map[string][]string{"46": {four, six}, "64": {six, four}, "6": {six}} {
		t.Run(name, func(t *testing.T) { testFamilies(t, "families-"+name, order) })
	}
}

func testFamilies(t *testing.T, name string, order []string) {
	list := func(i int) string {
		var all []string
		for _, o := range order {
			all = append(all, `"`+strings.Fields(o)[i]+`"`)
		}
		return "[" + strings.Join(all, ",") + "]"
	}
	settings := filepath.Join(t.TempDir(), "settings.yaml")
	text := fmt.Sprintf("name: %s\npodCIDRs: %s\nserviceCIDRs: %s\nnodeIPs: %s\n", name, list(0), list(1), list(2))
	if err := os.WriteFile(settings, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, name, "--config", settings)
	c.hello()
	c.apply(families)
	c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	c.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
	words := func(path string, args ...string) []string {
		t.Helper()
		return strings.Fields(c.kubectl(append(append([]string{"get"}, args...), "-o", "jsonpath={"+path+"}")...))
	}
	var nets []netip.Prefix
	for _, o := range order {
		nets = append(nets, netip.MustParsePrefix(strings.Fields(o)[0]))
	}
	ofEach := func(what string, ips []string) {
		t.Helper()
		for i, ip := range ips {
			if a, err := netip.ParseAddr(ip); err != nil || len(ips) != len(nets) || a.Is4() != nets[i].Addr().Is4() {
				t.Errorf("%s: %q", what, ips)
			}
		}
	}
	ofEach("pod", words(".items[0].status.podIPs[*].ip", "pods", "-l", "app=web"))
	ofEach("pod's host", words(".items[0].status.hostIPs[*].ip", "pods", "-l", "app=web"))
	ofEach("node", words(`.items[0].status.addresses[?(@.type=="InternalIP")].address`, "nodes"))
	ofEach("DNS", words(".spec.clusterIPs[*]", "service", "kube-dns", "-n", "kube-system"))
	vips := words(".spec.clusterIPs[*]", "service", "web")
	ofEach("Service", vips)
	if got := words(".items[*].addressType", "endpointslices", "-l", "kubernetes.io/service-name=web"); len(got) != len(nets) {
		t.Errorf("slices of %q", got)
	}
	port := words(".spec.ports[0].nodePort", "service", "web")[0]
	c.kubectl("wait", "--for=jsonpath={.status.loadBalancer.ingress}", "service/front", "--timeout=20s")
	fronts := words(".status.loadBalancer.ingress[*].ip", "service", "front")
	ofEach("load balancer", fronts)

	urls := []string{"http://web/", "http://each:8080/"}
	for i, vip := range vips {
		urls = append(urls, "http://"+net.JoinHostPort(vip, "80")+"/", "http://"+net.JoinHostPort(strings.Fields(order[i])[2], port)+"/")
	}
	for _, ip := range fronts {
		urls = append(urls, "http://"+net.JoinHostPort(ip, "7080")+"/")
	}
	podIPs := strings.Join(words(".items[0].status.podIPs[*].ip", "pods", "-l", "app=web"), ",")
	reached := func(when string) {
		t.Helper()
		for _, u := range urls {
			out, err := c.tryKubectl("exec", "client", "--", "/hello", "get", u)
			if err != nil || !strings.Contains(out, "version "+strings.Trim(strings.ReplaceAll(list(2), `"`, ""), "[]")) {
				t.Errorf("%s, a pod to %s: %v: %s", when, u, err, out)
			}
			if strings.HasPrefix(u, "http://web") || strings.HasPrefix(u, "http://each") {
				continue
			}
			if text, err := fetch(u); err != nil || !strings.HasPrefix(text, "hi from ") {
				t.Errorf("%s, the host to %s: %v: %s", when, u, err, text)
			}
		}
	}
	reached("at first")
	seen := false
	for range 50 {
		seen = seen || strings.Contains(c.kubectl("exec", "client", "--", "/hello", "get", "http://web/"), "from "+podIPs+",")
		if seen {
			break
		}
	}
	if !seen {
		t.Errorf("no pod says that it has %s", podIPs)
	}

	if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.up()
	c.kubectl("wait", "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=60s")
	reached("after a kill")

	// A policy that allows the Service's clients nothing but names, and one that allows the web's addresses of one family again.
	c.apply(`{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: none}, spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}}`)
	silent := func(u string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; {
			out, err := c.tryKubectl("exec", "client", "--", "/hello", "get", u)
			if err != nil && strings.Contains(out, "exceeded") {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s is reached past the policy: %v: %s", u, err, out)
			}
		}
	}
	for _, vip := range vips {
		silent("http://" + net.JoinHostPort(vip, "80") + "/")
	}
	c.apply(fmt.Sprintf(`{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: one}, spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress],
 egress: [{to: [{ipBlock: {cidr: %q}}]}]}}`, nets[0]))
	for end := time.Now().Add(20 * time.Second); ; {
		out, err := c.tryKubectl("exec", "client", "--", "/hello", "get", "http://"+net.JoinHostPort(vips[0], "80")+"/")
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("what a policy allows is not reached: %v: %s", err, out)
		}
	}
	for _, vip := range vips[1:] {
		silent("http://" + net.JoinHostPort(vip, "80") + "/")
	}
}

func fetch(url string) (string, error) {
	h := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := h.Get(url)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(res.Body)
	return string(b), errors.Join(err, res.Body.Close())
}

// TestFamiliesRefused asks for ranges that cannot be, and for others than a cluster has: each is told by its field, and nothing is made.
func TestFamiliesRefused(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "settings.yaml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for text, want := range map[string]string{
		`podCIDRs: ["fd42::/56"]`: "podCIDRs: are given together with serviceCIDRs",
		`{podCIDRs: ["fd42::/56", "fd45::/56"], serviceCIDRs: ["fd43::/112", "fd46::/112"]}`: "podCIDRs[1]: fd45::/56 is the second of its family",
		`{podCIDRs: ["fd42::/56"], serviceCIDRs: ["fd43::/112"], nodeIPs: [192.0.2.1]}`:      "nodeIPs: 192.0.2.1 is not of the family of fd42::/56",
	} {
		if out, err := (&cluster{t: t}).run(time.Minute, bin.yare, "up", "--name", "families-no", "--config", file(text)); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v: %s", text, err, out)
		}
		if out, err := (&cluster{t: t}).run(time.Minute, bin.yare, "status", "--name", "families-no"); err == nil {
			t.Errorf("%s left a cluster: %s", text, out)
		}
	}
	c := newCluster(t, "families-4")
	if out, err := c.run(time.Minute, bin.yare, "up", "--name", c.name, "--config", file(`{podCIDRs: [10.230.0.0/16], serviceCIDRs: [10.231.0.0/16]}`)); err == nil ||
		!strings.Contains(out, "they are chosen when a cluster is made") {
		t.Errorf("%v: %s", err, out)
	}
}
