package plugins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/netns"
	"github.com/yare-dev/yare/linux/nft"
)

// Config says how pods are attached.
type Config struct {
	// Name distinguishes the networks of a host; it is in the names of links.
	Name string
	// Dir holds the state; it must be gone after a reboot (/run/...).
	Dir string
	// Table is the nftables table for host ports and masquerading, of the inet
	// family and nobody else's. Empty means "yare-<Name>-pods".
	Table string
	// Ranges are this node's pod ranges, at most one of each family.
	Ranges []netip.Prefix
	// ClusterCIDRs are all pods' ranges; traffic to them is not masqueraded.
	// Empty means Ranges.
	ClusterCIDRs []netip.Prefix
	// MTU of the links; 0 means that of the host's default route.
	MTU int
	// Pool is the number of namespaces kept ready; 0 means none.
	Pool int
	// Guard is told of pods' addresses; nil: nobody is.
	Guard Guard
}

// Guard is told which pods have which addresses in time to do something about their packets.
type Guard interface {
	// Attach is called before the pod's addresses lead anywhere, again if it is set up again. With an error the pod gets no network.
	Attach(ctx context.Context, p Attached) error
	// Detach is called when the addresses of a sandbox lead nowhere any more, before another can have them; also for one that Attach was
	// not called for. It may be called again.
	Detach(sandbox string)
}

// Attached is a pod with its addresses.
type Attached struct {
	Sandbox              string // its ID
	Namespace, Name, UID string // the pod's; UID is empty where it is not known
	Addrs                []netip.Addr
}

func (c Config) withDefaults() Config {
	if c.Table == "" {
		c.Table = "yare-" + c.Name + "-pods"
	}
	if len(c.ClusterCIDRs) == 0 {
		c.ClusterCIDRs = c.Ranges
	}
	return c
}

// Validate returns all problems at once.
func (c Config) Validate() error {
	var errs []error
	if c.Name == "" {
		errs = append(errs, errors.New("name: is empty"))
	}
	if !filepath.IsAbs(c.Dir) {
		errs = append(errs, fmt.Errorf("dir: %q is not an absolute path", c.Dir))
	}
	families := map[bool]bool{}
	for _, r := range c.Ranges {
		if !r.IsValid() || r.Bits() > r.Addr().BitLen()-2 {
			errs = append(errs, fmt.Errorf("ranges: %s has no room for pods", r))
		}
		if families[r.Addr().Is4()] {
			errs = append(errs, fmt.Errorf("ranges: %s is the second of its family", r))
		}
		families[r.Addr().Is4()] = true
	}
	if len(c.Ranges) == 0 {
		errs = append(errs, errors.New("ranges: none is given"))
	}
	return errors.Join(errs...)
}

// linkPrefix begins the name of every link of the network on the host.
func (c Config) linkPrefix() string {
	sum := sha256.Sum256([]byte(c.Name))
	return "y" + hex.EncodeToString(sum[:3])
}

// Network is the built-in network. It implements cni.Network and run.Component.
type Network struct {
	c     Config
	log   *slog.Logger
	addrs *addresses

	// spare holds the namespaces that are ready; refill asks for more, once a pod is set
	// up: making one holds the kernel's link lock, for which the pod would wait.
	spare  chan *ready
	refill chan struct{}
	// dying are links that the kernel should reap by itself.
	dying chan string

	portsMu sync.Mutex // see lock

	mu      sync.Mutex
	state   *host             // nil until the host is set up
	known   map[string]*ready // namespaces made, or being made, by this process and not yet set up, by path
	hostErr error             // why the host is not set up
}

// host is what the network holds of the host's namespace.
type host struct {
	links *netlink.Handle
	nft   *nft.Conn
	ns    *os.File // the namespace itself: sysctls go by the thread's, not by a socket's
	mtu   int
}

// do calls f on a thread in the host's namespace.
func (h *host) do(f func() error) error {
	return netns.Do(fmt.Sprintf("/proc/self/fd/%d", h.ns.Fd()), f)
}

// New returns the network. It uses the network namespace in which Run, or the
// first other method, is called.
func New(c Config, log *slog.Logger) (*Network, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("built-in network: %w", err)
	}
	return &Network{
		c: c, log: log,
		addrs:  &addresses{dir: filepath.Join(c.Dir, "addrs"), last: filepath.Join(c.Dir, "given"), ranges: c.Ranges},
		spare:  make(chan *ready, max(c.Pool, 1)),
		refill: make(chan struct{}, 1),
		dying:  make(chan string, 1024),
		known:  map[string]*ready{},
	}, nil
}

// Name implements run.Component.
func (n *Network) Name() string { return "network" }

// host sets the host up at the first call.
func (n *Network) host() (*host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == nil {
		n.state, n.hostErr = n.setUpHost()
	}
	return n.state, n.hostErr
}

func (n *Network) setUpHost() (h *host, err error) {
	for _, sub := range []string{"netns", "addrs", "pods"} {
		if err := os.MkdirAll(filepath.Join(n.c.Dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	h = &host{mtu: n.c.MTU}
	if h.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, err
	}
	if h.links, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink socket: %w", err), h.ns.Close())
	}
	if h.nft, err = nft.Dial(); err != nil {
		h.links.Close()
		return nil, errors.Join(err, h.ns.Close())
	}
	if h.mtu == 0 {
		h.mtu, err = link.DefaultMTU(h.links)
	}
	for _, r := range n.c.Ranges {
		if r.Addr().Is4() {
			err = errors.Join(err, link.Sysctl("net/ipv4/ip_forward", "1"))
		} else if e := link.Forward6(); !errors.Is(e, link.ErrNoIPv6) { // which Status tells, and Remove need not know
			err = errors.Join(err, e)
		}
	}
	if err = errors.Join(err, n.syncTable(h)); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *host) close() {
	h.links.Close()
	_, _ = h.nft.Close(), h.ns.Close() // nothing is in flight
}

// NewNamespace implements cni.Network: a ready one, or one made now.
func (n *Network) NewNamespace(ctx context.Context) (string, error) {
	h, err := n.host()
	if err != nil {
		return "", err
	}
	var r *ready
	select {
	case r = <-n.spare:
	default:
		if r, err = n.prepare(h); err != nil {
			return "", err
		}
	}
	return r.path, nil
}

// take returns what is known of the namespace at path, and forgets it.
func (n *Network) take(path string) *ready {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.known[path]
	delete(n.known, path)
	return r
}

// DeleteNamespace implements cni.Network.
func (n *Network) DeleteNamespace(ctx context.Context, path string) error {
	if r := n.take(path); r != nil {
		r.close()
		n.reap(r.link)
		n.askRefill()
	}
	return netns.Delete(path)
}

// askRefill has the pool filled up.
func (n *Network) askRefill() {
	select {
	case n.refill <- struct{}{}:
	default:
	}
}

// reap has a link deleted if the kernel does not reap it soon.
func (n *Network) reap(name string) {
	select {
	case n.dying <- name:
	default: // Prune finds it
	}
}

// Status implements cni.Network.
func (n *Network) Status(ctx context.Context) error {
	h, err := n.host()
	if err != nil {
		return fmt.Errorf("%w: %w", cni.ErrNotReady, err)
	}
	if _, err := h.links.LinkByIndex(1); err != nil {
		return fmt.Errorf("%w: %w", cni.ErrNotReady, err)
	}
	if err := n.possible(); err != nil {
		return fmt.Errorf("%w: %w", cni.ErrNotReady, err)
	}
	return nil
}

// has6 says whether pods have addresses of IPv6.
func (c Config) has6() bool {
	return slices.ContainsFunc(c.Ranges, func(r netip.Prefix) bool { return r.Addr().Is6() })
}

// possible says what the kernel lacks for the ranges.
func (n *Network) possible() error {
	if !n.c.has6() {
		return nil
	}
	return link.CheckIPv6()
}

// Prune implements cni.Network.
func (n *Network) Prune(ctx context.Context, live []cni.Pod) error {
	h, err := n.host()
	if err != nil {
		return err
	}
	f, err := n.find(h)
	if err != nil {
		return err
	}
	return n.prune(h, f, live)
}

// found is what there is of the network on the host.
type found struct{ namespaces, links []string }

// find comes before what is known is looked at: the pool is being filled meanwhile, and knows a thing before it makes it.
func (n *Network) find(h *host) (f found, err error) {
	if f.namespaces, err = netns.List(filepath.Join(n.c.Dir, "netns")); err != nil {
		return f, err
	}
	f.links, err = link.WithPrefix(h.links, n.c.linkPrefix())
	return f, err
}

// prune removes those of f that are nobody's.
func (n *Network) prune(h *host, f found, live []cni.Pod) error {
	ids, paths, links := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, p := range live {
		ids[p.ID], paths[p.NetNS] = true, true
	}
	records, err := n.records()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range records {
		if ids[r.Pod] {
			links[r.HostLink] = true
		} else {
			errs = append(errs, n.detach(h, r))
		}
	}
	n.mu.Lock()
	for path, r := range n.known {
		paths[path], links[r.link] = true, true
	}
	n.mu.Unlock()
	for _, path := range f.namespaces {
		if !paths[path] {
			errs = append(errs, netns.Delete(path))
		}
	}
	for _, name := range f.links {
		if !links[name] {
			errs = append(errs, link.Delete(h.links, name))
		}
	}
	errs = append(errs, n.pruneHalf(ids), n.pruneAddresses(ids), n.syncTable(h))
	return errors.Join(errs...)
}

// pruneHalf removes records that a process was killed over before they were in place.
func (n *Network) pruneHalf(live map[string]bool) error {
	dir := filepath.Join(n.c.Dir, "pods")
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		pod, half := strings.CutPrefix(e.Name(), halfPrefix)
		if !half || live[pod] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (n *Network) pruneAddresses(live map[string]bool) error {
	held, err := n.addrs.all()
	if err != nil {
		return err
	}
	var gone []netip.Addr
	for ip, pod := range held {
		if !live[pod] {
			gone = append(gone, ip)
		}
	}
	return n.addrs.free(gone)
}

// Remove removes everything that the network ever made on the host, links
// included, before it returns. Run must not be running.
func (n *Network) Remove(ctx context.Context) error {
	h, err := n.host()
	if err != nil {
		return err
	}
	errs := []error{n.Prune(ctx, nil)}
	n.mu.Lock()
	left := n.known
	n.known, n.state = map[string]*ready{}, nil
	n.mu.Unlock()
	for _, path := range slices.Sorted(maps.Keys(left)) {
		left[path].close()
		errs = append(errs, netns.Delete(path), link.Delete(h.links, left[path].link))
	}
	have, err := h.nft.Read(n.c.Table)
	errs = append(errs, err)
	if have != nil {
		errs = append(errs, h.nft.Commit(nft.Diff(have, nil)))
	}
	h.close()
	return errors.Join(append(errs, os.RemoveAll(n.c.Dir))...)
}

// Owns reports whether NewNamespace made the namespace at path.
func (n *Network) Owns(path string) bool {
	return filepath.Dir(path) == filepath.Join(n.c.Dir, "netns")
}
