package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestResolvConfChanges has the file read again when it has the time it had.
func TestResolvConfChanges(t *testing.T) {
	t.Parallel()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	f := newForwarder(nil, conf, func(netip.AddrPort) bool { return false })
	old, young := time.Unix(1000, 0), time.Now().Add(time.Hour)
	write := func(text string, at time.Time) {
		t.Helper()
		if err := errors.Join(os.WriteFile(conf, []byte(text), 0o644), os.Chtimes(conf, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	is := func(want string) {
		t.Helper()
		if got := fmt.Sprint(f.upstreams()); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	write("nameserver 192.0.2.1\n", old)
	is("[192.0.2.1:53]")
	write("nameserver 192.0.2.22\n", old)
	is("[192.0.2.22:53]")
	write("nameserver 192.0.2.3\n", young)
	is("[192.0.2.3:53]")
	write("nameserver 192.0.2.4\n", young)
	is("[192.0.2.4:53]")
}
