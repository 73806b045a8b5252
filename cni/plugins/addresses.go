package plugins

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// addresses gives out the addresses of some ranges, one of each range per pod.
// Its state is a directory, so that any number of processes may share it.
type addresses struct {
	dir    string // of the links address -> pod ID
	last   string // file with the address given last, by range
	ranges []netip.Prefix
}

// errExhausted says that every address of a range is taken.
var errExhausted = errors.New("no address is free")

// take gives the pod an address of every range: the one it has, the wanted one,
// or the lowest free one after the one given last, so that an address rests as long as
// possible before it is used again.
//
// had are the addresses that the pod is thought to have; those that it has not are ignored.
func (a *addresses) take(pod string, had, wanted []netip.Addr) (_ []netip.Addr, err error) {
	var held, out []netip.Addr
	for _, ip := range had {
		if p, err := os.Readlink(filepath.Join(a.dir, ip.String())); err == nil && p == pod {
			held = append(held, ip)
		}
	}
	for i, r := range a.ranges {
		ip, ok := firstIn(held, r)
		if want, asked := firstIn(wanted, r); !ok && asked {
			ok, err = a.claim(want, pod)
			ip = want
			if err == nil && !ok {
				err = fmt.Errorf("take address %s: in use", want)
			}
		} else if !ok {
			ip, err = a.next(i, pod)
		}
		if err != nil {
			return nil, errors.Join(err, a.release(pod))
		}
		out = append(out, ip)
	}
	return out, nil
}

func firstIn(ips []netip.Addr, r netip.Prefix) (netip.Addr, bool) {
	for _, ip := range ips {
		if r.Contains(ip) {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// next claims the lowest free address after the last one, going round once. The
// first address of a range is left out (the network's), and so is IPv4's last.
func (a *addresses) next(i int, pod string) (netip.Addr, error) {
	r := a.ranges[i].Masked()
	usable := func(ip netip.Addr) bool { return r.Contains(ip) && (ip.Is6() || r.Contains(ip.Next())) }
	first := r.Addr().Next()
	last := fmt.Sprintf("%s.%d", a.last, i)
	ip := first
	if text, err := os.ReadFile(last); err == nil {
		if after, err := netip.ParseAddr(strings.TrimSpace(string(text))); err == nil && usable(after.Next()) {
			ip = after.Next()
		}
	}
	for start, round := ip, false; usable(ip) && !(round && ip == start); ip = ip.Next() {
		ok, err := a.claim(ip, pod)
		if err != nil {
			return netip.Addr{}, err
		}
		if ok {
			return ip, remember(ip, last)
		}
		if !usable(ip.Next()) {
			if round || start == first {
				break
			}
			// Everything up to start is left to try.
			ip, round = r.Addr(), true
		}
	}
	return netip.Addr{}, fmt.Errorf("take address of %s: %w", r, errExhausted)
}

// claim takes ip if nobody has it.
func (a *addresses) claim(ip netip.Addr, pod string) (bool, error) {
	err := os.Symlink(pod, filepath.Join(a.dir, ip.String()))
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// addressWidth is more than the longest address has letters.
const addressWidth = 48

// remember writes down which address was given last. It is a hint for whoever reads it: the file is written in place, by one
// write of always the same length, so that a process that is killed meanwhile leaves nothing half made.
func remember(ip netip.Addr, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%-*s", addressWidth, ip)
	return errors.Join(err, f.Close())
}

// all returns who holds which address.
func (a *addresses) all() (map[netip.Addr]string, error) {
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return nil, err
	}
	held := make(map[netip.Addr]string, len(entries))
	for _, e := range entries {
		ip, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		pod, err := os.Readlink(filepath.Join(a.dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // released meanwhile
		}
		if err != nil {
			return nil, err
		}
		held[ip] = pod
	}
	return held, nil
}

func (a *addresses) heldBy(pod string) ([]netip.Addr, error) {
	held, err := a.all()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for ip, p := range held {
		if p == pod {
			out = append(out, ip)
		}
	}
	return out, nil
}

// release frees what the pod holds.
func (a *addresses) release(pod string) error {
	held, err := a.heldBy(pod)
	if err != nil {
		return err
	}
	return a.free(held)
}

// free gives addresses back.
func (a *addresses) free(ips []netip.Addr) error {
	var errs []error
	for _, ip := range ips {
		if err := os.Remove(filepath.Join(a.dir, ip.String())); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
