package proxy

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/nft"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// ruleset returns the whole table. Services are taken in the order of their
// names; an address and port that two of them claim is the first one's.
func ruleset(f Facts, services []*corev1.Service, bySvc map[api.Key][]*discoveryv1.EndpointSlice) *nft.Table {
	s := newState(f)
	for _, svc := range services {
		s.parts[api.KeyOf(svc)] = part(f, svc, bySvc[api.KeyOf(svc)])
	}
	s.rebuild()
	return s.table
}

func testFacts() Facts {
	return Facts{Table: "t", NodeName: "n1", Zone: "z1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Mark: DefaultMark, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
}

// objects decodes YAML documents of Services and EndpointSlices.
func objects(t testing.TB, text string) (services []*corev1.Service, bySvc map[api.Key][]*discoveryv1.EndpointSlice) {
	t.Helper()
	bySvc = map[api.Key][]*discoveryv1.EndpointSlice{}
	for _, doc := range strings.Split(text, "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "Service":
			s := &corev1.Service{}
			if err := yaml.UnmarshalStrict([]byte(doc), s); err != nil {
				t.Fatal(err)
			}
			services = append(services, s)
		case "EndpointSlice":
			s := &discoveryv1.EndpointSlice{}
			if err := yaml.UnmarshalStrict([]byte(doc), s); err != nil {
				t.Fatal(err)
			}
			k := api.Key{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
			bySvc[k] = append(bySvc[k], s)
		default:
			t.Fatalf("unknown kind %q", kind.Kind)
		}
	}
	return services, bySvc
}

// TestRuleset compares rulesets with testdata/*.txt: objects, "----", and the table
// without what every table has.
func TestRuleset(t *testing.T) {
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
			services, bySvc := objects(t, in)
			got := ruleset(testFacts(), services, bySvc)
			if file != "testdata/empty.txt" {
				for name := range skeleton(testFacts()).Chains {
					delete(got.Chains, name)
				}
				for name, s := range got.Sets {
					if len(s.Elems) == 0 {
						delete(got.Sets, name)
					}
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(in+"\n----\n"+got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestNodeFacts has a change of the node's addresses or zone take every Service up again.
func TestNodeFacts(t *testing.T) {
	k := api.Key{Namespace: "d", Name: "a"}
	l := &loop{state: newState(Facts{}), services: map[api.Key]*corev1.Service{k: {}}, dirty: map[api.Key]bool{}}
	node := func(zone, ip string) client.Event {
		return client.Event{Op: client.Modified, Object: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{corev1.LabelTopologyZone: zone}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeInternalIP, Address: ip}}}}}
	}
	for i, test := range []struct {
		e       client.Event
		changes bool
	}{{node("z1", "192.0.2.2"), true}, {node("z1", "192.0.2.2"), false}, {node("z2", "192.0.2.2"), true}, {node("z2", "192.0.2.3"), true}} {
		clear(l.dirty)
		if l.take(test.e); l.dirty[k] != test.changes {
			t.Errorf("event %d: taken up again %v", i, l.dirty[k])
		}
	}
	if f := l.state.f; f.Zone != "z2" || len(f.NodeIPs) != 1 || f.NodeIPs[0] != netip.MustParseAddr("192.0.2.3") {
		t.Errorf("got %+v", f)
	}
}
