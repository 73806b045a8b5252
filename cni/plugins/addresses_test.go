package plugins

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func newAddresses(t testing.TB, ranges ...string) *addresses {
	dir := t.TempDir()
	a := &addresses{dir: filepath.Join(dir, "addrs"), last: filepath.Join(dir, "last")}
	if err := os.Mkdir(a.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, r := range ranges {
		a.ranges = append(a.ranges, netip.MustParsePrefix(r))
	}
	return a
}

// TestAddresses runs scripts of "+pod" (take), "+pod=wanted" and "-pod" (release);
// the answer of a take follows the arrow.
func TestAddresses(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		ranges string
		script []string
	}{
		"in order, after the last": {"10.0.0.0/29", []string{
			"+a -> 10.0.0.1", "+b -> 10.0.0.2", "-a", "+c -> 10.0.0.3", "-c", "+d -> 10.0.0.4"}},
		"goes round": {"10.0.0.0/29", []string{
			"+a -> 10.0.0.1", "+b -> 10.0.0.2", "+c -> 10.0.0.3", "+d -> 10.0.0.4", "+e -> 10.0.0.5", "+f -> 10.0.0.6",
			"+g -> take address of 10.0.0.0/29: no address is free", "-c", "+g -> 10.0.0.3"}},
		"the same pod has the same address": {"10.0.0.0/29", []string{"+a -> 10.0.0.1", "+a -> 10.0.0.1"}},
		"wanted": {"10.0.0.0/29", []string{
			"+a=10.0.0.5 -> 10.0.0.5", "+b=10.0.0.5 -> take address 10.0.0.5: in use", "+c -> 10.0.0.1"}},
		"two families": {"10.0.0.0/29 fd00::/126", []string{
			"+a -> 10.0.0.1 fd00::1", "+b -> 10.0.0.2 fd00::2", "+c -> 10.0.0.3 fd00::3",
			// The IPv4 address of the failed take is free again, but rests.
			"+d -> take address of fd00::/126: no address is free", "-c", "+e -> 10.0.0.5 fd00::3"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAddresses(t, strings.Fields(test.ranges)...)
			for _, step := range test.script {
				cmd, want, _ := strings.Cut(step, " -> ")
				if pod, ok := strings.CutPrefix(cmd, "-"); ok {
					if err := a.release(pod); err != nil {
						t.Error(err)
					}
					continue
				}
				pod, ip, asked := strings.Cut(cmd[1:], "=")
				var wanted []netip.Addr
				if asked {
					wanted = append(wanted, netip.MustParseAddr(ip))
				}
				had, err := a.heldBy(pod)
				if err != nil {
					t.Fatal(err)
				}
				ips, err := a.take(pod, append(had, netip.MustParseAddr("10.0.0.6")), wanted)
				got := strings.Trim(fmt.Sprint(ips), "[]")
				if err != nil {
					got = err.Error()
				}
				if got != want {
					t.Errorf("%s: got %s", step, got)
				}
			}
		})
	}
}

// TestAddressesTogether takes the addresses of a range by many at once, through
// several values as several processes would.
func TestAddressesTogether(t *testing.T) {
	t.Parallel()
	a := newAddresses(t, "10.0.0.0/26")
	var mu sync.Mutex
	got := map[netip.Addr]string{}
	var wg sync.WaitGroup
	for i := range 62 {
		wg.Go(func() {
			own := *a
			pod := fmt.Sprint(i)
			ips, err := own.take(pod, nil, nil)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if other := got[ips[0]]; other != "" {
				t.Errorf("%s and %s both have %s", pod, other, ips[0])
			}
			got[ips[0]] = pod
		})
	}
	wg.Wait()
	if _, err := a.take("one more", nil, nil); !errors.Is(err, errExhausted) {
		t.Errorf("63rd address of a /26: %v", err)
	}
}
