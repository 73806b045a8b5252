package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yare-dev/yare/linux/netns"
)

// inNamespace runs f in a fresh network namespace, which holds no table before or
// after.
func inNamespace(t testing.TB, f func(path string, c *Conn)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "ns")
	if err := netns.New(path, nil); err != nil {
		t.Fatal(err)
	}
	var c *Conn
	err := netns.Do(path, func() (err error) { c, err = Dial(); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), netns.Delete(path)); err != nil {
			t.Error(err)
		}
	})
	f(path, c)
}

// nftList is what nft(8) prints in the namespace; empty when there is no nft.
func nftList(t testing.TB, path string) string {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		return ""
	}
	var out []byte
	err = netns.Do(path, func() (err error) { out, err = exec.Command(nft, "list", "ruleset").CombinedOutput(); return err })
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// sample is a table that uses every kind of set and statement.
func sample(name string) *Table {
	t := NewTable(name)
	t.Sets["services"] = &Set{Key: []Type{IPv4, Proto, Service}, Verdicts: true, Elems: map[string]string{
		Pack(addr("10.43.0.1"), TCP, uint16(443)): "goto lb-2",
		Pack(addr("10.43.0.2"), UDP, uint16(53)):  "drop",
	}}
	t.Sets["endpoints"] = &Set{Key: []Type{IPv4, Proto, Service, Number}, Data: []Type{IPv4, Service}, Elems: map[string]string{
		Pack(addr("10.43.0.1"), TCP, uint16(443), uint32(0)): Pack(addr("192.0.2.1"), uint16(6443)),
		Pack(addr("10.43.0.1"), TCP, uint16(443), uint32(1)): Pack(addr("192.0.2.2"), uint16(6443)),
	}}
	t.Sets["endpoints6"] = &Set{Key: []Type{IPv6, Proto, Service, Number}, Data: []Type{IPv6, Service}, Elems: map[string]string{}}
	t.Sets["hairpin"] = &Set{Key: []Type{IPv4, IPv4}, Elems: map[string]string{Pack(addr("10.0.0.9"), addr("10.0.0.9")): ""}}
	t.Sets["affinity"] = &Set{Key: []Type{IPv4, Service, IPv4}, Data: []Type{IPv4, Service}, Dynamic: true, Size: 1000, Timeout: time.Hour}
	t.Chains["lb-2"] = &Chain{Rules: []Rule{{IP4.DNATMap("endpoints", IP4.Daddr(), L4Proto(), Dport(), Random(2, 0))}}}
	t.Chains["lb6-2"] = &Chain{Rules: []Rule{{IP6.DNATMap("endpoints6", IP6.Daddr(), L4Proto(), Dport(), Random(2, 7))}}}
	exprs, _, next := Load(FirstReg, Const(IPv4, addr("10.43.0.1")), Const(Service, uint16(80)), IP4.Saddr())
	data, _, _ := Load(next, Const(IPv4, addr("10.0.0.9")), Const(Service, uint16(8080)))
	t.Chains["sticky"] = &Chain{Rules: []Rule{{{Text: "sticky", Exprs: append(append(exprs, data...),
		Forget("affinity", FirstReg, next), Remember("affinity", FirstReg, next, time.Minute))}}}}
	t.Chains["prerouting"] = &Chain{Hook: &Hook{"nat", Prerouting, -100}, Rules: []Rule{
		{IP4.Is(), VMap("services", IP4.Daddr(), L4Proto(), Dport())},
		{IP4.Is(), NotFrom(netip.MustParsePrefix("10.42.0.0/16")), ToLocal(), Proto4(TCP), SetMark(0x4000)},
		{From(netip.MustParsePrefix("fd00::/64")), FromLocal(), Goto("lb-2")},
	}}
	t.Chains["postrouting"] = &Chain{Hook: &Hook{"nat", Postrouting, 100}, Rules: []Rule{
		{HasMark(0x4000), ClearMark(0x4000), Masquerade()},
		{IP4.Is(), In("hairpin", IP4.Saddr(), IP4.Daddr()), Masquerade()},
	}}
	t.Chains["filter"] = &Chain{Hook: &Hook{"filter", Prerouting, -110}, Rules: []Rule{
		{New(), To(netip.MustParsePrefix("127.0.0.1/32")), InLink("yv"), Drop()},
		{Proto4(TCP), RejectTCP()},
		{NotTo(netip.MustParsePrefix("10.0.0.0/8")), Reject()},
	}}
	return t
}

// TestReadBack applies a table, reads it back and expects no difference: neither by
// Diff nor in print, but for the rules, which are read as digests.
func TestReadBack(t *testing.T) {
	t.Parallel()
	inNamespace(t, func(path string, c *Conn) {
		want := sample("a")
		if err := c.Commit(Diff(nil, want)); err != nil {
			t.Fatal(err)
		}
		have, err := c.Read("a")
		if err != nil {
			t.Fatal(err)
		}
		if b := Diff(have, want); !b.Empty() {
			t.Errorf("%d messages of difference\n%s", b.Messages(), have)
		}
		if other, err := c.Read("b"); other != nil || err != nil {
			t.Errorf("a table that is not there: %v, %v", other, err)
		}
		listed := nftList(t, path)
		for _, text := range []string{
			"10.43.0.1 . tcp . 443 : goto lb-2", "10.43.0.1 . tcp . 443 . 0x00000001 : 192.0.2.2 . 6443",
			"type nat hook prerouting priority dstnat", "ip saddr != 10.42.0.0/16 fib daddr type local",
			"ip daddr . meta l4proto . th dport vmap @services", "masquerade fully-random", "reject with tcp reset",
		} {
			if listed != "" && !strings.Contains(listed, text) {
				t.Errorf("nft does not print %q in\n%s", text, listed)
			}
		}
	})
}

// TestChanges walks through tables, each from the one before, in one transaction.
func TestChanges(t *testing.T) {
	t.Parallel()
	edit := func(f func(t *Table)) *Table { t := sample("a"); f(t); return t }
	steps := []struct {
		name string
		want *Table
		msgs int
	}{
		{"create", sample("a"), 3 + 5 + 6 + 11 + 3},
		{"same", sample("a"), 0},
		{"element data", edit(func(t *Table) {
			t.Sets["services"].Elems[Pack(addr("10.43.0.2"), UDP, uint16(53))] = "goto lb-2"
		}), 2},
		{"chain with its element", edit(func(t *Table) {
			t.Chains["lb-3"] = &Chain{Rules: []Rule{{Drop()}}}
			t.Sets["services"].Elems[Pack(addr("10.43.0.3"), TCP, uint16(80))] = "goto lb-3"
		}), 4},
		{"and away", sample("a"), 3},
		{"rule", edit(func(t *Table) { t.Chains["filter"].Rules = t.Chains["filter"].Rules[:1] }), 2},
		{"set and its user away", edit(func(t *Table) {
			delete(t.Sets, "hairpin")
			t.Chains["postrouting"].Rules = t.Chains["postrouting"].Rules[:1]
		}), 2 + 4 + 1},
		{"hook", edit(func(t *Table) { t.Chains["filter"].Hook.Priority = -120 }), 3 + 5 + 6 + 11 + 3},
		{"delete", nil, 1},
	}
	inNamespace(t, func(_ string, c *Conn) {
		for _, s := range steps {
			have, err := c.Read("a")
			if err != nil {
				t.Fatal(err)
			}
			b := Diff(have, s.want)
			if err := c.Commit(b); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			if s.name != "create" && s.name != "hook" && b.Messages() != s.msgs {
				t.Errorf("%s: %d messages, want %d", s.name, b.Messages(), s.msgs)
			}
			after, err := c.Read("a")
			if err != nil {
				t.Fatal(err)
			}
			if b := Diff(after, s.want); !b.Empty() {
				t.Errorf("%s: %d messages left to do\n%v", s.name, b.Messages(), after)
			}
		}
	})
}

// TestAtomic checks that a transaction with one bad message does nothing.
func TestAtomic(t *testing.T) {
	t.Parallel()
	inNamespace(t, func(_ string, c *Conn) {
		bad := sample("a")
		bad.Sets["services"].Elems[Pack(addr("10.43.0.4"), TCP, uint16(1))] = "goto nowhere"
		if err := c.Commit(Diff(nil, bad)); err == nil {
			t.Error("a verdict to no chain was accepted")
		}
		if have, err := c.Read("a"); have != nil || err != nil {
			t.Errorf("left behind: %v, %v", have, err)
		}
		bad.Sets["services"].Elems[Pack(addr("10.43.0.4"), TCP, uint16(1))] = "wander"
		if err := c.Commit(Diff(nil, bad)); err == nil || !strings.Contains(err.Error(), `"wander"`) {
			t.Errorf("unknown verdict: %v", err)
		}
	})
}

// TestAfterFailure has a transaction fail at so many messages that the answers do not fit the socket: the next ones, large and small, are not
// judged by what is left of them.
func TestAfterFailure(t *testing.T) {
	t.Parallel()
	inNamespace(t, func(_ string, c *Conn) {
		many := NewTable("missing")
		for i := range 1000 {
			many.Chains[fmt.Sprint("c", i)] = &Chain{}
		}
		for range 2 {
			b := &Batch{}
			b.Update(NewTable("missing"), many)
			if err := c.Commit(b); err == nil {
				t.Error("chains of no table were made")
			}
			if err := c.Commit(Replace(many)); err != nil {
				t.Error(err)
			}
			if err := c.Commit(Diff(many, nil)); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestMonitor(t *testing.T) {
	t.Parallel()
	inNamespace(t, func(path string, c *Conn) {
		var m *Monitor
		var other *Conn
		err := netns.Do(path, func() (err error) {
			if m, err = c.Watch("a"); err != nil {
				return err
			}
			other, err = Dial()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		defer other.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		changed := make(chan error)
		go func() {
			for {
				err := m.Next(ctx)
				changed <- err
				if err != nil {
					return
				}
			}
		}()
		commit := func(c *Conn, b *Batch) {
			if err := c.Commit(b); err != nil {
				t.Error(err)
			}
		}
		// Neither our own changes count, nor those of another table.
		commit(c, Diff(nil, sample("a")))
		commit(other, Diff(nil, sample("b")))
		select {
		case err := <-changed:
			t.Errorf("a change was reported: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		commit(other, Diff(sample("a"), nil))
		if err := <-changed; err != nil {
			t.Error(err)
		}
		cancel()
		for err := range changed {
			if errors.Is(err, context.Canceled) {
				break
			}
		}
	})
}

func TestPack(t *testing.T) {
	t.Parallel()
	types := []Type{IPv4, IPv6, Proto, Service, Number}
	fields := []any{addr("1.2.3.4"), addr("fd00::1"), SCTP, uint16(80), uint32(7)}
	got, err := Unpack(types, Pack(fields...))
	if err != nil || fmt.Sprint(got) != fmt.Sprint(fields) {
		t.Errorf("got %v, %v, want %v", got, err, fields)
	}
	if Width(types) != len(Pack(fields...)) {
		t.Error("Width differs from what Pack makes")
	}
	if _, err := Unpack(types, "abc"); err == nil {
		t.Error("three bytes were unpacked")
	}
}

func big(n int) *Table {
	t := NewTable("big")
	services := &Set{Key: []Type{IPv4, Proto, Service}, Verdicts: true, Elems: map[string]string{}}
	endpoints := &Set{Key: []Type{IPv4, Proto, Service, Number}, Data: []Type{IPv4, Service}, Elems: map[string]string{}}
	t.Sets["services"], t.Sets["endpoints"] = services, endpoints
	t.Chains["lb-3"] = &Chain{Rules: []Rule{{IP4.DNATMap("endpoints", IP4.Daddr(), L4Proto(), Dport(), Random(3, 0))}}}
	for i := range n {
		ip := netip.AddrFrom4([4]byte{10, 43, byte(i >> 8), byte(i)})
		services.Elems[Pack(ip, TCP, uint16(80))] = "goto lb-3"
		for slot := range uint32(3) {
			endpoints.Elems[Pack(ip, TCP, uint16(80), slot)] = Pack(netip.AddrFrom4([4]byte{10, 42, byte(slot), byte(i)}), uint16(8080))
		}
	}
	return t
}

func BenchmarkCommit10000(b *testing.B) {
	inNamespace(b, func(_ string, c *Conn) {
		want := big(10000)
		for b.Loop() {
			if err := c.Commit(Replace(want)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRead10000(b *testing.B) {
	inNamespace(b, func(_ string, c *Conn) {
		if err := c.Commit(Replace(big(10000))); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := c.Read("big"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
