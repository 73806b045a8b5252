package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/yare-dev/yare/linux/link"
)

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, t := range texts {
		ps = append(ps, netip.MustParsePrefix(t))
	}
	return ps
}

// TestCheckRanges refuses what cannot be the ranges of a cluster, each by the field and what is wrong.
func TestCheckRanges(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pods, services []netip.Prefix
		want           []string
	}{
		{nil, nil, nil},
		{prefixes("10.42.0.0/16"), prefixes("10.43.0.0/16"), nil},
		{prefixes("fd42::/56"), prefixes("fd43::/112"), nil},
		{prefixes("10.42.0.0/16", "fd42::/56"), prefixes("10.43.0.0/16", "fd43::/112"), nil},
		{prefixes("fd42::/48", "10.42.0.0/24"), prefixes("fd43::/108", "10.43.0.0/28"), nil},
		{prefixes("10.42.0.0/16"), nil, []string{"podCIDRs: are given together with serviceCIDRs"}},
		{nil, prefixes("10.42.0.0/16"), []string{"podCIDRs: are given together with serviceCIDRs"}},
		{prefixes("10.42.0.0/16", "fd42::/56"), prefixes("10.43.0.0/16"), []string{"serviceCIDRs: are 1, and podCIDRs 2"}},
		{prefixes("10.42.0.0/16", "fd42::/56"), prefixes("fd43::/112", "10.43.0.0/16"), []string{"serviceCIDRs: fd43::/112 is not of the family", "serviceCIDRs: 10.43.0.0/16 is not"}},
		{prefixes("10.42.0.0/16", "10.44.0.0/16"), prefixes("10.43.0.0/16", "10.45.0.0/16"), []string{"podCIDRs[1]: 10.44.0.0/16 is the second of its family", "serviceCIDRs[1]: "}},
		{prefixes("10.42.0.0/16"), prefixes("10.42.128.0/20"), []string{"serviceCIDRs: 10.42.128.0/20 overlaps podCIDRs' 10.42.0.0/16"}},
		{prefixes("10.42.0.1/16"), prefixes("10.43.0.0/16"), []string{"podCIDRs[0]: 10.42.0.1/16 is an address within 10.42.0.0/16: use that"}},
		{prefixes("10.42.0.0/25"), prefixes("10.43.0.0/29"), []string{"podCIDRs[0]: 10.42.0.0/25: a range of this family for pods is from /8 to /24", "serviceCIDRs[0]: 10.43.0.0/29: "}},
		{prefixes("fd42::/80"), prefixes("fd43::/48"), []string{"podCIDRs[0]: fd42::/80: a range of this family for pods is from /48 to /64", "serviceCIDRs[0]: fd43::/48: "}},
		{prefixes("169.254.0.0/16"), prefixes("127.0.0.0/16"), []string{"podCIDRs[0]: 169.254.0.0/16 is for other things than pods", "serviceCIDRs[0]: 127.0.0.0/16 is for"}},
		{prefixes("fe80::/64"), prefixes("ff00::/112"), []string{"podCIDRs[0]: fe80::/64 is for other", "serviceCIDRs[0]: ff00::/112 is for other"}},
		{prefixes("::ffff:10.42.0.0/112"), prefixes("10.43.0.0/16"), []string{"podCIDRs[0]: ::ffff:10.42.0.0/112 is not a range such as"}},
		{prefixes("10.42.0.0/16", "fd42::/56", "fd44::/56"), prefixes("10.43.0.0/16"), []string{"podCIDRs: are 3: one, or two"}},
	} {
		var got []string
		CheckRanges(tt.pods, tt.services, func(field, format string, args ...any) { got = append(got, fmt.Sprintf(field+": "+format, args...)) })
		fits := len(got) == len(tt.want)
		for i := range min(len(got), len(tt.want)) {
			fits = fits && strings.HasPrefix(got[i], tt.want[i])
		}
		if !fits {
			t.Errorf("%v, %v: %q, want %q", tt.pods, tt.services, got, tt.want)
		}
	}
}

// TestClaimRanges gives a new cluster the ranges that are wished for, and refuses those of others and changed ones.
func TestClaimRanges(t *testing.T) {
	if err := link.CheckIPv6(); err != nil {
		t.Skip(err)
	}
	h := host(t)
	pods, services := prefixes("10.200.0.0/16", "fd42:1::/56"), prefixes("10.201.0.0/16", "fd43:1::/112")
	a := claim(t, h, Wish{Name: "a", PodCIDRs: pods, ServiceCIDRs: services})
	if !slices.Equal(a.PodCIDRs(), pods) || !slices.Equal(a.ServiceCIDRs(), services) || a.Forwarding6 == "" {
		t.Errorf("%+v", a)
	}
	if got := fmt.Sprint(a.NodeRanges(), a.DNSAddress(), a.DNSAddresses(), a.APIAddress()); got != "[10.200.0.0/24 fd42:1::/64] 10.201.0.10 [10.201.0.10 fd43:1::a] 10.201.0.1" {
		t.Error(got)
	}
	again, created, err := h.Claim(Wish{Name: "a", PodCIDRs: pods, ServiceCIDRs: services})
	if err != nil || created || again.SecondPodCIDR != a.SecondPodCIDR {
		t.Errorf("%+v, %v, %v", again, created, err)
	}
	for _, tt := range []struct {
		wish Wish
		want string
	}{
		{Wish{Name: "a", PodCIDRs: pods[:1], ServiceCIDRs: services[:1]}, `cluster "a" has podCIDRs [10.200.0.0/16 fd42:1::/56], not [10.200.0.0/16]`},
		{Wish{Name: "b", PodCIDRs: prefixes("fd42::/48"), ServiceCIDRs: prefixes("fd43:1::1:0/112")}, ""},
		{Wish{Name: "c", PodCIDRs: prefixes("fd42:1:0:80::/57"), ServiceCIDRs: prefixes("fd45::/112")}, `podCIDRs: fd42:1:0:80::/57 overlaps fd42:1::/56 of cluster "a"`},
		{Wish{Name: "c", PodCIDRs: prefixes("10.202.0.0/16"), ServiceCIDRs: prefixes("10.200.128.0/20")}, `serviceCIDRs: 10.200.128.0/20 overlaps 10.200.0.0/16 of cluster "a"`},
	} {
		r, _, err := h.Claim(tt.wish)
		if tt.want == "" && (err != nil || !slices.Equal(r.PodCIDRs(), tt.wish.PodCIDRs)) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%+v: %+v, %v", tt.wish, r, err)
		}
	}
	four := claim(t, h, Wish{Name: "four"})
	if four.Forwarding6 != "" || len(four.PodCIDRs()) != 1 || len(four.ServiceCIDRs()) != 1 {
		t.Errorf("%+v", four)
	}
	if node := claim(t, h, Wish{Name: "node", IPv6: true}); node.Forwarding6 != a.Forwarding6 {
		t.Errorf("%+v", node)
	}
}

// A server that has joined has the ranges that it was told, and does not start without.
func TestToldRanges(t *testing.T) {
	r := &Record{DataDir: t.TempDir(), PodCIDR: prefixes("10.42.0.0/16")[0]}
	if err := r.CheckNodeRanges(); err != nil {
		t.Error(err)
	}
	r.Joined = true
	if err := r.CheckNodeRanges(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for text, want := range map[string]string{"": "has none", "x": r.NodeRangesFile(), "10.42.7.0/24\n": ""} {
		if err := os.WriteFile(r.NodeRangesFile(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.CheckNodeRanges(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := r.KeepNodeRanges(prefixes("10.42.3.0/24", "fd42:0:0:3::/64")); err != nil || fmt.Sprint(r.NodeRanges()) != "[10.42.3.0/24 fd42:0:0:3::/64]" {
		t.Errorf("%v, %v", r.NodeRanges(), err)
	}
}
