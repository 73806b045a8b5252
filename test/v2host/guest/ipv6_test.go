//go:build guest

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNoIPv6 asks for a cluster with IPv6 on a host whose kernel has it off: it is refused with the reason, and leaves nothing.
func TestNoIPv6(t *testing.T) {
	if _, err := os.Stat("/proc/net/if_inet6"); err == nil {
		t.Fatal("the kernel has IPv6")
	}
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "kubeconfig"))
	settings := filepath.Join(t.TempDir(), "settings.yaml")
	text := "name: six\npodCIDRs: [10.42.0.0/16, 'fd42::/56']\nserviceCIDRs: [10.43.0.0/16, 'fd43::/112']\n"
	if err := os.WriteFile(settings, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := try(t, "", "yare", "up", "--config", settings)
	if err == nil || !strings.Contains(out, "this host's kernel has IPv6 off") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := try(t, "", "yare", "status", "--name", "six"); err == nil {
		t.Errorf("a cluster is left: %s", out)
	}
}
