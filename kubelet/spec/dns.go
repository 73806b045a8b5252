package spec

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The most that resolvers understand.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// DNS is what pods are told about names.
type DNS struct {
	Servers []string // the cluster's name servers; empty: pods use the host's
	Domain  string   // the cluster's domain, such as cluster.local
	Host    *runtimeapi.DNSConfig
}

// PodDNS returns the pod's resolver configuration. What is above the limits of resolvers is cut; warning says what.
func PodDNS(pod *corev1.Pod, d DNS) (config *runtimeapi.DNSConfig, warning string) {
	policy := pod.Spec.DNSPolicy
	switch {
	case policy == corev1.DNSNone:
	case policy == corev1.DNSDefault, policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork:
		policy = corev1.DNSDefault
	case len(d.Servers) == 0:
		if policy != corev1.DNSDefault {
			warning = "pod: \"" + pod.Name + "\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"" +
				string(policy) + "\" policy. Falling back to \"Default\" policy."
		}
		policy = corev1.DNSDefault
	default:
		policy = corev1.DNSClusterFirst
	}
	host := d.Host
	if host == nil {
		host = &runtimeapi.DNSConfig{}
	}
	out := &runtimeapi.DNSConfig{}
	switch policy {
	case corev1.DNSDefault:
		out.Servers, out.Searches, out.Options = slices.Clone(host.Servers), slices.Clone(host.Searches), slices.Clone(host.Options)
	case corev1.DNSClusterFirst:
		out.Servers = slices.Clone(d.Servers)
		if d.Domain != "" {
			out.Searches = []string{pod.Namespace + ".svc." + d.Domain, "svc." + d.Domain, d.Domain}
		}
		out.Searches = union(out.Searches, host.Searches)
		out.Options = []string{"ndots:5"}
	}
	if own := pod.Spec.DNSConfig; own != nil {
		out.Servers = union(out.Servers, own.Nameservers)
		out.Searches = union(out.Searches, own.Searches)
		out.Options = mergeOptions(out.Options, own.Options)
	}
	if cut := limit(out); cut != "" {
		warning = cut
	}
	return out, warning
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

func mergeOptions(have []string, own []corev1.PodDNSConfigOption) []string {
	for _, o := range own {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		i := slices.IndexFunc(have, func(s string) bool {
			name, _, _ := strings.Cut(s, ":")
			return name == o.Name
		})
		if i >= 0 {
			have[i] = text
		} else {
			have = append(have, text)
		}
	}
	return have
}

func limit(c *runtimeapi.DNSConfig) (warning string) {
	if len(c.Servers) > maxNameservers {
		c.Servers = c.Servers[:maxNameservers]
		warning = "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: " +
			strings.Join(c.Servers, " ")
	}
	n := len(c.Searches)
	for n > maxSearches || n > 0 && len(strings.Join(c.Searches[:n], " ")) > maxSearchChars {
		n--
	}
	if n < len(c.Searches) {
		c.Searches = c.Searches[:n]
		warning = "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: " +
			strings.Join(c.Searches, " ")
	}
	return warning
}

// ParseResolvConf reads resolv.conf(5). A search of "." is dropped: pods search nothing then.
func ParseResolvConf(text string) *runtimeapi.DNSConfig {
	c := &runtimeapi.DNSConfig{}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], ";") {
			continue
		}
		switch f[0] {
		case "nameserver":
			if ip, _, _ := strings.Cut(f[1], "%"); net.ParseIP(ip) != nil {
				c.Servers = append(c.Servers, f[1])
			}
		case "search", "domain":
			c.Searches = nil
			for _, s := range f[1:] {
				if s != "." {
					c.Searches = append(c.Searches, strings.TrimSuffix(s, "."))
				}
			}
		case "options":
			c.Options = f[1:]
		}
	}
	return c
}

// Hosts returns the pod's /etc/hosts. A pod in the host's network gets the host's own text.
func Hosts(pod *corev1.Pod, ips []string, hostText string, clusterDomain string) string {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.WriteString(hostText)
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\n" +
			"fe00::0\tip6-mcastprefix\n" +
			"fe00::1\tip6-allnodes\n" +
			"fe00::2\tip6-allrouters\n")
		name, domain := Hostname(pod, clusterDomain)
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, name, domain, name)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, name)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.String()
}
