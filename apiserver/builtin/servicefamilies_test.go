package builtin_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
)

const (
	single  = corev1.IPFamilyPolicySingleStack
	prefer  = corev1.IPFamilyPolicyPreferDualStack
	require = corev1.IPFamilyPolicyRequireDualStack
	v4      = corev1.IPv4Protocol
	v6      = corev1.IPv6Protocol
)

// stacks are clusters by their families.
func stacks(t *testing.T) map[string]*cluster {
	four, six := netip.MustParsePrefix("10.43.0.0/24"), netip.MustParsePrefix("fd43::/112")
	return map[string]*cluster{"4": newClusterOf(t, four), "6": newClusterOf(t, six), "46": newClusterOf(t, four, six), "64": newClusterOf(t, six, four)}
}

// wish is what somebody asks of a Service's families.
type wish struct {
	policy   corev1.IPFamilyPolicy
	families []corev1.IPFamily
	ips      []string
	headless bool
	selector bool
}

func (w wish) of(s *corev1.Service) *corev1.Service {
	if w.policy != "" {
		s.Spec.IPFamilyPolicy = &w.policy
	}
	s.Spec.IPFamilies = w.families
	if s.Spec.ClusterIPs = w.ips; len(w.ips) > 0 {
		s.Spec.ClusterIP = w.ips[0]
	}
	if w.headless {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"}
	}
	if w.selector {
		s.Spec.Selector = map[string]string{"a": "b"}
	}
	return s
}

// settled is what a Service was given: policy, families, and the families of its addresses.
func settled(o api.Object, err error) string {
	if err != nil {
		_, text, _ := strings.Cut(err.Error(), "is invalid: ")
		return "error: " + text
	}
	s := o.(*corev1.Service)
	words := []string{string(*s.Spec.IPFamilyPolicy), "", ""}
	for _, f := range s.Spec.IPFamilies {
		words[1] += strings.TrimPrefix(string(f), "IPv")
	}
	for i, ip := range s.Spec.ClusterIPs {
		switch a, err := netip.ParseAddr(ip); {
		case err != nil:
			words[2] += ip
		case a.Is4():
			words[2] += "4"
		default:
			words[2] += "6"
		}
		if i == 0 && ip != s.Spec.ClusterIP {
			words[2] += "!=" + s.Spec.ClusterIP
		}
	}
	return strings.Join(words, " ")
}

// TestFamilies creates Services in clusters of one and of two families: policy, families and addresses, by KEP-563. The addresses that
// are asked for are below those that are given to who does not ask.
func TestFamilies(t *testing.T) {
	t.Parallel()
	const noDual = `error: spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`
	not := func(f string) string {
		return fmt.Sprintf(`error: spec.ipFamilies[0]: Invalid value: "IPv%s": not configured on this cluster`, f)
	}
	const twoFamilies = `error: spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified`
	const twoAddresses = `error: spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified`
	headless := wish{headless: true}
	selects := wish{headless: true, selector: true}
	with := func(w wish, policy corev1.IPFamilyPolicy) wish { w.policy = policy; return w }
	clusters := stacks(t)
	for i, tt := range []struct {
		wish
		want map[string]string
	}{
		{wish{}, map[string]string{"4": "SingleStack 4 4", "6": "SingleStack 6 6", "46": "SingleStack 4 4", "64": "SingleStack 6 6"}},
		{wish{policy: prefer}, map[string]string{"4": "PreferDualStack 4 4", "6": "PreferDualStack 6 6", "46": "PreferDualStack 46 46", "64": "PreferDualStack 64 64"}},
		{wish{policy: require}, map[string]string{"4": noDual, "6": noDual, "46": "RequireDualStack 46 46", "64": "RequireDualStack 64 64"}},
		{wish{families: []corev1.IPFamily{v6}}, map[string]string{"4": not("6"), "6": "SingleStack 6 6", "46": "SingleStack 6 6"}},
		{wish{families: []corev1.IPFamily{v4}}, map[string]string{"4": "SingleStack 4 4", "6": not("4"), "64": "SingleStack 4 4"}},
		{wish{policy: prefer, families: []corev1.IPFamily{v6}}, map[string]string{"4": not("6"), "46": "PreferDualStack 64 64"}},
		{wish{policy: require, families: []corev1.IPFamily{v6, v4}}, map[string]string{"46": "RequireDualStack 64 64"}},
		{wish{policy: prefer, families: []corev1.IPFamily{v4, v6}}, map[string]string{"6": not("4"), "46": "PreferDualStack 46 46"}},
		{wish{families: []corev1.IPFamily{v4, v6}}, map[string]string{"46": twoFamilies, "4": twoFamilies}},
		{wish{ips: []string{"fd43::77"}}, map[string]string{"46": "SingleStack 6 6", "6": "SingleStack 6 6",
			"4": `error: spec.clusterIPs[0]: Invalid value: ["fd43::77"]: IPv6 is not configured on this cluster`}},
		{wish{ips: []string{"10.43.0.7", "fd43::78"}, policy: require}, map[string]string{"46": "RequireDualStack 46 46", "64": "RequireDualStack 46 46"}},
		{wish{ips: []string{"10.43.0.9", "fd43::79"}}, map[string]string{"46": twoAddresses}},
		{wish{ips: []string{"10.43.0.8"}, families: []corev1.IPFamily{v6}}, map[string]string{
			"46": "error: spec.clusterIPs[0]: Invalid value: \"10.43.0.8\": expected an IPv6 value as indicated by `ipFamilies[0]`"}},
		{wish{ips: []string{"10.43.0.8", "fd44::1"}, policy: require}, map[string]string{
			"46": `error: spec.clusterIPs: Invalid value: ["10.43.0.8","fd44::1"]: failed to allocate IP fd44::1: the provided network does not match the current range`}},
		// What the failed one had taken before is free again.
		{wish{ips: []string{"10.43.0.8"}, policy: prefer}, map[string]string{"46": "PreferDualStack 46 46"}},
		{wish{ips: []string{"fd43::"}}, map[string]string{
			"46": `error: spec.clusterIPs: Invalid value: ["fd43::"]: failed to allocate IP fd43::: the provided network does not match the current range`}},
		{headless, map[string]string{"4": "RequireDualStack 46 None", "6": "RequireDualStack 64 None", "46": "RequireDualStack 46 None"}},
		{with(headless, single), map[string]string{"4": "SingleStack 4 None", "6": "SingleStack 6 None", "46": "SingleStack 4 None"}},
		{with(headless, prefer), map[string]string{"4": "PreferDualStack 46 None"}},
		{selects, map[string]string{"4": "SingleStack 4 None", "6": "SingleStack 6 None", "46": "SingleStack 4 None"}},
		{with(selects, prefer), map[string]string{"4": "PreferDualStack 4 None", "64": "PreferDualStack 64 None"}},
		{with(selects, require), map[string]string{"4": noDual, "46": "RequireDualStack 46 None"}},
	} {
		for name, want := range tt.want {
			o, err := clusters[name].create(tt.of(service(fmt.Sprint("s", i), "")))
			if got := settled(o, err); got != want {
				t.Errorf("%d: %+v in a cluster of %s:\n got %s\nwant %s", i, tt.wish, name, got, want)
			}
		}
	}
}

// TestFamilyChanges follows a Service up to two families and down again, one change after the other: what it keeps, what it is given,
// what is refused.
func TestFamilyChanges(t *testing.T) {
	t.Parallel()
	c := newClusterOf(t, netip.MustParsePrefix("10.43.0.0/24"), netip.MustParsePrefix("fd43::/112"))
	now, err := c.create(service("s", ""))
	c.must(now, err)
	first := now.(*corev1.Service).Spec.ClusterIP
	set := func(p corev1.IPFamilyPolicy) func(*corev1.ServiceSpec) {
		return func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = &p }
	}
	anew := func(p corev1.IPFamilyPolicy) func(*corev1.ServiceSpec) {
		return func(s *corev1.ServiceSpec) {
			s.IPFamilyPolicy, s.ClusterIP, s.ClusterIPs, s.IPFamilies = &p, "", nil, nil
		}
	}
	var second string
	for _, step := range []struct {
		what string
		fn   func(*corev1.ServiceSpec)
		want string
	}{
		{"two are required", set(require), "RequireDualStack 46 46"},
		{"one is enough", set(prefer), "PreferDualStack 46 46"},
		{"nothing is said of addresses", anew(prefer), "PreferDualStack 46 46"},
		{"only the singular address is said", func(s *corev1.ServiceSpec) { s.ClusterIPs, s.IPFamilies, s.IPFamilyPolicy = nil, nil, nil }, "PreferDualStack 46 46"},
		{"the second address alone is given up", func(s *corev1.ServiceSpec) { s.ClusterIPs = s.ClusterIPs[:1] },
			`error: spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be 'SingleStack' to release the secondary cluster IP`},
		{"the second family alone is given up", func(s *corev1.ServiceSpec) { s.IPFamilies = s.IPFamilies[:1] },
			`error: spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be 'SingleStack' to release the secondary IP family`},
		{"the second address is another", func(s *corev1.ServiceSpec) { s.ClusterIPs = []string{s.ClusterIP, "fd43::ff"} },
			`error: spec.clusterIPs[1]: Invalid value: ["FIRST","fd43::ff"]: may not change once set`},
		{"the first address is another", func(s *corev1.ServiceSpec) {
			s.ClusterIP, s.ClusterIPs = "10.43.0.9", []string{"10.43.0.9", s.ClusterIPs[1]}
		},
			`error: spec.clusterIPs[0]: Invalid value: ["10.43.0.9","SECOND"]: may not change once set`},
		{"the families change places", func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{v6, v4} },
			"error: [spec.clusterIPs[0]: Invalid value: \"FIRST\": expected an IPv6 value as indicated by `ipFamilies[0]`, " +
				"spec.clusterIPs[1]: Invalid value: \"SECOND\": expected an IPv4 value as indicated by `ipFamilies[1]`]"},
		{"one alone", set(single), "SingleStack 4 4"},
		{"a second address alone", func(s *corev1.ServiceSpec) { s.ClusterIPs = append(s.ClusterIPs[:1:1], "fd43::aa") },
			`error: spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified`},
		{"a second address with the policy", func(s *corev1.ServiceSpec) {
			s.ClusterIPs, s.IPFamilyPolicy = append(s.ClusterIPs[:1:1], "fd43::aa"), new(require)
		}, "RequireDualStack 46 46"},
		{"two are given up by all names", func(s *corev1.ServiceSpec) {
			s.ClusterIPs, s.IPFamilies, s.IPFamilyPolicy = s.ClusterIPs[:1], s.IPFamilies[:1], new(single)
		}, "SingleStack 4 4"},
		{"a name elsewhere", func(s *corev1.ServiceSpec) { s.Type, s.ExternalName = corev1.ServiceTypeExternalName, "example.com" }, "nothing"},
		{"and here again, in two families", func(s *corev1.ServiceSpec) {
			s.Type, s.ExternalName, s.IPFamilyPolicy, s.IPFamilies = "", "", new(prefer), []corev1.IPFamily{v6}
		}, "PreferDualStack 64 64"},
	} {
		next := now.DeepCopyObject().(*corev1.Service)
		step.fn(&next.Spec)
		o, err := c.update(next, "")
		want := strings.NewReplacer("FIRST", first, "SECOND", second).Replace(step.want)
		if want == "nothing" {
			if s, ok := o.(*corev1.Service); err != nil || !ok || s.Spec.IPFamilyPolicy != nil || len(s.Spec.IPFamilies)+len(s.Spec.ClusterIPs) > 0 {
				t.Fatalf("%s: %+v, %v", step.what, o, err)
			}
		} else if got := settled(o, err); got != want {
			t.Errorf("%s:\n got %s\nwant %s", step.what, got, want)
		}
		if err == nil {
			if now = o; len(o.(*corev1.Service).Spec.ClusterIPs) > 1 {
				second = o.(*corev1.Service).Spec.ClusterIPs[1]
			}
		}
	}
	// The address that was given up is free.
	other := wish{ips: []string{"fd43::aa"}}.of(service("other", ""))
	if got := settled(c.create(other)); got != "SingleStack 6 6" {
		t.Errorf("an address that was given up: %s", got)
	}
}

// TestFamiliesOfClusterChange finds a Service that prefers two families unchanged in a cluster that has got the second one, as long as
// nobody asks for it.
func TestFamiliesOfClusterChange(t *testing.T) {
	t.Parallel()
	four, six := netip.MustParsePrefix("10.43.0.0/24"), netip.MustParsePrefix("fd43::/112")
	before := newClusterOf(t, four)
	o, err := before.create(wish{policy: prefer}.of(service("s", "")))
	before.must(o, err)
	after := before.with(four, six)
	next := o.DeepCopyObject().(*corev1.Service)
	next.Labels = map[string]string{"a": "b"}
	o, err = after.update(next, "")
	if got := settled(o, err); got != "PreferDualStack 4 4" {
		t.Errorf("another label: %s", got)
	}
	next = o.DeepCopyObject().(*corev1.Service)
	next.Spec.IPFamilyPolicy = new(require)
	if got := settled(after.update(next, "")); got != "RequireDualStack 46 46" {
		t.Errorf("the second is required: %s", got)
	}
}
