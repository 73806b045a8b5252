package netpol

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/linux/nft"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// nodeRange is that of the node under test; pods with other addresses are elsewhere.
var nodeRange, clusterRange = netip.MustParsePrefix("10.42.1.0/24"), netip.MustParsePrefix("10.42.0.0/16")

func testConfig() Config {
	return Config{Table: "t", Ranges: []netip.Prefix{nodeRange}, Cluster: []netip.Prefix{clusterRange}, DNS: []netip.Addr{netip.MustParseAddr("10.43.0.10")}}
}

// nodeRange6 and clusterRange6 are theirs of IPv6.
var nodeRange6, clusterRange6 = netip.MustParsePrefix("fd42:0:0:1::/64"), netip.MustParsePrefix("fd42::/56")

// dualConfig is testConfig with a second family.
func dualConfig() Config {
	c := testConfig()
	c.Ranges, c.Cluster, c.DNS = append(c.Ranges, nodeRange6), append(c.Cluster, clusterRange6), append(c.DNS, netip.MustParseAddr("fd43::a"))
	return c
}

// cluster is a set of objects, each kind in order.
type cluster struct {
	config     Config
	namespaces []*corev1.Namespace
	policies   []*networkingv1.NetworkPolicy
	pods       []*corev1.Pod
}

// parse decodes YAML documents.
func parse(t testing.TB, text string) (c cluster) {
	t.Helper()
	if c.config = testConfig(); strings.Contains(text, "fd42:") {
		c.config = dualConfig()
	}
	for _, doc := range strings.Split(text, "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			t.Fatal(err)
		}
		var o api.Object
		switch kind.Kind {
		case "Namespace":
			n := &corev1.Namespace{}
			c.namespaces, o = append(c.namespaces, n), n
		case "NetworkPolicy":
			p := &networkingv1.NetworkPolicy{}
			c.policies, o = append(c.policies, p), p
		case "Pod":
			p := &corev1.Pod{}
			c.pods, o = append(c.pods, p), p
		default:
			t.Fatalf("unknown kind %q", kind.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
	}
	return c
}

// attachment is how the network would tell of a pod: with the addresses of its status that are of the node's range.
func attachment(p *corev1.Pod) *Attachment {
	a := &Attachment{Sandbox: "s-" + p.Namespace + "-" + p.Name, Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}
	for _, ip := range p.Status.PodIPs {
		if at := netip.MustParseAddr(ip.IP); nodeRange.Contains(at) || nodeRange6.Contains(at) {
			a.Addrs = append(a.Addrs, at)
		}
	}
	if len(a.Addrs) == 0 || p.Spec.HostNetwork {
		return nil
	}
	return a
}

// stateOf is the state of a node of the cluster, from nothing.
func stateOf(c cluster) *state {
	s := newState(c.config)
	for _, o := range c.pods {
		s.setPod(api.KeyOf(o), parsePod(o))
		if a := attachment(o); a != nil {
			s.attach(a)
		}
	}
	for _, o := range c.policies {
		s.setPolicy(api.KeyOf(o), o)
	}
	for _, o := range c.namespaces {
		s.setNamespace(o.Name, o.Labels)
	}
	s.update()
	return s
}

// readable numbers the hashes in a table in the order in which they appear.
func readable(t *nft.Table) string {
	if t == nil {
		return "no table\n"
	}
	text, seen := t.String(), map[string]string{}
	var b strings.Builder
	for {
		i := strings.IndexFunc(text, func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '2' && r <= '7' })
		if i < 0 {
			b.WriteString(text)
			return b.String()
		}
		b.WriteString(text[:i])
		text = text[i:]
		n := strings.IndexFunc(text, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '2' && r <= '7') })
		word := text[:n]
		if len(word) == 24 {
			if seen[word] == "" {
				seen[word] = fmt.Sprintf("#%d", len(seen)+1)
			}
			word = seen[word]
		}
		b.WriteString(word)
		text = text[n:]
	}
}

// TestTable compares tables with testdata/*.txt: objects, "----", and the table without what every table has.
func TestTable(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in, want, _ := strings.Cut(string(b), "\n----\n")
			c := parse(t, in)
			table := stateOf(c).wanted()
			if table != nil && !strings.HasPrefix(file, "testdata/deny-all") {
				for name := range skeleton(c.config).Chains {
					delete(table.Chains, name)
				}
				for _, name := range []string{"cluster", "names", "isolated", "self"} {
					delete(table.Sets, name)
					delete(table.Sets, name+"6")
				}
			}
			got := readable(table)
			if *update {
				if err := os.WriteFile(file, []byte(in+"\n----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
