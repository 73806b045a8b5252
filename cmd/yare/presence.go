package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/bootstrap"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/dns"
	"github.com/yare-dev/yare/run"
)

// Where servers are written down: one that is up under its address, by a lease of the database, where upstream's API servers are too; and each
// member's name, for as long as it is a member.
const (
	upPrefix   = "/registry/masterleases/"
	namePrefix = "/yare/servers/"
)

// upSeconds is how long a server is believed to be up without a word, as upstream's.
const upSeconds = 15

// announced is what a server says of itself, in upstream's form.
func (s *server) announced() *corev1.Endpoints {
	return &corev1.Endpoints{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Endpoints"},
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: s.addresses[0].String(), NodeName: &s.config.NodeName}},
			Ports:     []corev1.EndpointPort{{Name: "https", Port: int32(s.record.APIPort), Protocol: corev1.ProtocolTCP}},
		}},
	}
}

// presence has other servers know that this one is up, once there may be others.
func (s *server) presence() run.Component {
	return run.Func("presence", func(ctx context.Context, ready func()) error {
		ready()
		if !s.waitShared(ctx) {
			return nil
		}
		for ctx.Err() == nil {
			if s.leaving.Load() {
				_ = run.Pause(ctx, time.Second)
				continue
			}
			if err := s.present(ctx); err != nil && ctx.Err() == nil && !s.leaving.Load() {
				s.log.Warn("other servers do not know that this one is up", "err", err)
			}
			_ = run.Pause(ctx, time.Second)
		}
		return nil
	})
}

// waitShared waits until there may be other servers.
func (s *server) waitShared(ctx context.Context) bool {
	if !s.store.Exclusive() {
		return true
	}
	select {
	case <-s.shared:
		return true
	case <-ctx.Done():
		return false
	}
}

// present keeps the key until that fails.
func (s *server) present(ctx context.Context) error {
	c := s.etcd.Client()
	if id := s.etcd.Self(); id != 0 {
		if _, err := c.Put(ctx, nameKey(id), s.config.NodeName); err != nil {
			return fmt.Errorf("write this server's name: %w", err)
		}
	}
	lease, err := c.Grant(ctx, upSeconds)
	if err != nil {
		return fmt.Errorf("take a lease: %w", err)
	}
	defer func() { // one that ends in order is gone at once
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, _ = c.Revoke(end, lease.ID) // else it ends by itself
	}()
	text, err := json.Marshal(s.announced())
	if err != nil {
		return err
	}
	if _, err := c.Put(ctx, upPrefix+s.addresses[0].String(), string(text), clientv3.WithLease(lease.ID)); err != nil {
		return fmt.Errorf("write this server's address: %w", err)
	}
	kept, err := c.KeepAlive(ctx, lease.ID)
	if err != nil {
		return fmt.Errorf("keep the lease: %w", err)
	}
	for range kept {
	}
	return errors.New("the lease ended")
}

func nameKey(id uint64) string { return namePrefix + strconv.FormatUint(id, 16) }

// present is a server that is up.
type present struct {
	at   netip.AddrPort
	node string
}

// endpoints says, on the server that leads, which servers are up: in what the Service `kubernetes` leads to, and of which servers the DNS is asked.
func (s *server) endpoints() run.Component {
	return run.Func("servers", func(ctx context.Context, ready func()) error {
		ready()
		if !s.waitShared(ctx) {
			return nil
		}
		for ctx.Err() == nil {
			if err := s.followServers(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("what leads to the API servers is not up to date", "err", err)
			}
			_ = run.Pause(ctx, time.Second)
		}
		return nil
	})
}

// followServers writes what there is, and again with each change, until something fails.
func (s *server) followServers(ctx context.Context) error {
	c := s.etcd.Client()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all, err := c.Get(ctx, upPrefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("read which servers are up: %w", err)
	}
	servers := map[string]present{}
	for _, kv := range all.Kvs {
		if u, ok := s.readUp(string(kv.Key), kv.Value); ok {
			servers[string(kv.Key)] = u
		}
	}
	changes := c.Watch(ctx, upPrefix, clientv3.WithPrefix(), clientv3.WithRev(all.Header.Revision+1))
	for {
		if err := s.lead(ctx, servers); err != nil {
			return err
		}
		r, ok := <-changes
		if err := errors.Join(r.Err(), ctx.Err()); !ok || err != nil {
			return err
		}
		for _, e := range r.Events {
			key := string(e.Kv.Key)
			if u, ok := s.readUp(key, e.Kv.Value); ok && e.Type != clientv3.EventTypeDelete {
				servers[key] = u
			} else {
				delete(servers, key)
			}
		}
	}
}

// readUp reads what a server said of itself. One of upstream's has said its address alone.
func (s *server) readUp(key string, text []byte) (u present, ok bool) {
	a, err := netip.ParseAddr(strings.TrimPrefix(key, upPrefix))
	if err != nil {
		return u, false
	}
	u.at = netip.AddrPortFrom(a, uint16(s.record.APIPort))
	var e corev1.Endpoints
	if json.Unmarshal(text, &e) == nil && len(e.Subsets) == 1 && len(e.Subsets[0].Addresses) == 1 && e.Subsets[0].Addresses[0].NodeName != nil {
		u.node = *e.Subsets[0].Addresses[0].NodeName
	}
	return u, true
}

// lead writes where the servers are. Where none is up, what was written last is as good as anything.
func (s *server) lead(ctx context.Context, servers map[string]present) error {
	if len(servers) == 0 {
		return nil
	}
	var at []netip.AddrPort
	nodes := map[string]bool{}
	for _, u := range servers {
		at = append(at, u.at)
		nodes[u.node] = true
	}
	slices.SortFunc(at, netip.AddrPort.Compare)
	c := s.admin()
	if err := bootstrap.Endpoints(ctx, c, at...); err != nil {
		return fmt.Errorf("write endpoints of the API servers: %w", err)
	}
	own := labels.SelectorFromSet(labels.Set{discoveryv1.LabelManagedBy: dns.ManagedBy})
	slices, err := client.List[*discoveryv1.EndpointSlice](ctx, c, client.Query{Namespace: metav1.NamespaceSystem, Labels: own})
	if err != nil {
		return fmt.Errorf("list endpoints of the DNS: %w", err)
	}
	members, err := s.forget(ctx)
	if err != nil {
		return err
	}
	for _, e := range slices {
		if node := nodeOf(e); members != nil && !members[node] {
			err = c.Delete(ctx, e, client.DeleteOptions{}) // of a server that is none any more
		} else {
			_, err = client.Mutate(ctx, c, e, "", func(e *discoveryv1.EndpointSlice) {
				for i := range e.Endpoints {
					e.Endpoints[i].Conditions.Ready = new(nodes[node])
				}
			})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("write endpoints of the DNS: %w", err)
		}
	}
	return nil
}

// nodeOf is the node of a slice that a DNS server has published.
func nodeOf(e *discoveryv1.EndpointSlice) string {
	if len(e.Endpoints) == 1 && e.Endpoints[0].NodeName != nil {
		return *e.Endpoints[0].NodeName
	}
	return ""
}

// forget removes the names of members that are none any more, and returns the nodes of those that are; nil where these are not all known.
func (s *server) forget(ctx context.Context) (map[string]bool, error) {
	all := s.etcd.Members()
	if len(all) == 0 {
		return nil, nil // they are elsewhere
	}
	names, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	members, known := map[string]bool{}, true
	for _, m := range all {
		members[names[m.ID]] = true
		known = known && names[m.ID] != ""
		delete(names, m.ID)
	}
	for id := range names {
		if _, err := s.etcd.Client().Delete(ctx, nameKey(id)); err != nil {
			return nil, fmt.Errorf("forget a server that was removed: %w", err)
		}
	}
	if !known {
		return nil, nil
	}
	return members, nil
}

// goes takes a node's server out of those that are up.
func (s *server) goes(ctx context.Context, node string) error {
	r, err := s.etcd.Client().Get(ctx, upPrefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("read which servers are up: %w", err)
	}
	for _, kv := range r.Kvs {
		if u, ok := s.readUp(string(kv.Key), kv.Value); !ok || node == "" || u.node != node {
			continue
		}
		if node == s.config.NodeName { // with the lease, so that present knows
			_, err = s.etcd.Client().Revoke(ctx, clientv3.LeaseID(kv.Lease))
		} else {
			_, err = s.etcd.Client().Delete(ctx, string(kv.Key))
		}
		if err != nil {
			return fmt.Errorf("say that server %s is not up: %w", node, err)
		}
	}
	return nil
}

// names are the nodes' names of all members, by ID.
func (s *server) names(ctx context.Context) (map[uint64]string, error) {
	r, err := s.etcd.Client().Get(ctx, namePrefix, clientv3.WithPrefix(), clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("read servers' names: %w", err)
	}
	out := map[uint64]string{}
	for _, kv := range r.Kvs {
		if id, err := strconv.ParseUint(strings.TrimPrefix(string(kv.Key), namePrefix), 16, 64); err == nil {
			out[id] = string(kv.Value)
		}
	}
	return out, nil
}

// upNow are the addresses of the servers that are up, as this one's database has it.
func (s *server) upNow(ctx context.Context) (map[string]string, error) {
	r, err := s.etcd.Client().Get(ctx, upPrefix, clientv3.WithPrefix(), clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("read which servers are up: %w", err)
	}
	out := map[string]string{}
	for _, kv := range r.Kvs {
		if u, ok := s.readUp(string(kv.Key), kv.Value); ok {
			out[u.node] = u.at.String()
		}
	}
	return out, nil
}

// assignedRanges makes the Node where there is none, and waits until the cluster has given it its ranges of pod addresses.
func assignedRanges(ctx context.Context, access client.Client, name string, waits func()) ([]netip.Prefix, error) {
	node := api.NodeKind.New().(*corev1.Node)
	node.ObjectMeta = metav1.ObjectMeta{Name: name}
	// Nothing is to be placed on it before the kubelet has said what it has: no capacity, no pods.
	if _, err := client.Create(ctx, access, node); err != nil && !apierrors.IsAlreadyExists(err) {
		if ctx.Err() != nil {
			return nil, nil
		}
		return nil, fmt.Errorf("register node %s: %w", name, err)
	}
	return waitRanges(ctx, access, name, waits)
}
