package kubelet

import (
	"slices"
	"testing"
)

// TestHostIPs tells pods of the first of their node's addresses of each family.
func TestHostIPs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ node, want []string }{
		{[]string{"192.0.2.1"}, []string{"192.0.2.1"}},
		{[]string{"192.0.2.1", "2001:db8::1"}, []string{"192.0.2.1", "2001:db8::1"}},
		{[]string{"2001:db8::1", "192.0.2.1", "192.0.2.2", "2001:db8::2"}, []string{"2001:db8::1", "192.0.2.1"}},
		{[]string{"192.0.2.1", "192.0.2.2"}, []string{"192.0.2.1"}},
	} {
		if got := (&Config{NodeIPs: tt.node}).hostIPs(); !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v", tt.node, got)
		}
	}
}
