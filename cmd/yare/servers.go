package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/run"
)

// Paths of what servers say to each other and to `yare`. The first is open to anybody: GET shows the authority's certificate, which is no secret, and POST needs
// a token. The second is for administrators: GET lists the servers, DELETE with ?name= removes one.
const (
	joinPath    = "/yare/join"
	serversPath = "/yare/servers"
)

// joinRequest is what one who joins says: at first to learn what the cluster is, then to be admitted, and that it gives up where it then does not come up.
type joinRequest struct {
	Token    string `json:"token"`
	Admit    *entry `json:"admit,omitempty"`    // neither: asks for the facts
	Withdraw string `json:"withdraw,omitempty"` // URL of its member
}

// entry is the server that is to be admitted.
type entry struct {
	Node      string       `json:"node"`
	Addresses []netip.Addr `json:"addresses"`
	Peer      string       `json:"peer"` // URL of its member
}

// facts are what makes a server one of the cluster's. They hold its keys.
type facts struct {
	APIPort      int               `json:"apiPort"`
	PodCIDRs     []netip.Prefix    `json:"podCIDRs"`
	ServiceCIDRs []netip.Prefix    `json:"serviceCIDRs"`
	NodePorts    [2]int            `json:"nodePorts"`
	Keys         map[string][]byte `json:"keys"`
	sharedSettings
	Files map[string][]byte `json:"files,omitempty"` // of those settings
}

// admitted is the answer to who is.
type admitted struct {
	Members    []etcd.Member  `json:"members"`
	NodeRanges []netip.Prefix `json:"nodeRanges"`
}

// busy says that the same may be asked again soon.
type busy struct{ error }

// joinHandler serves joinPath.
func (s *server) joinHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodGet:
			w.Header().Set("Content-Type", "application/x-pem-file")
			_, _ = w.Write(s.pki.CA.PEM()) // whoever is gone needs it no more
		case http.MethodPost:
			answer(w, func() (any, error) { return s.join(r) })
		default:
			http.Error(w, "GET or POST", http.StatusMethodNotAllowed)
		}
	})
}

// answer writes what f returns, or why it does not.
func answer(w http.ResponseWriter, f func() (any, error)) {
	out, err := f()
	code := http.StatusBadRequest
	var again busy
	if errors.As(err, &again) {
		code = http.StatusServiceUnavailable
	}
	if err != nil {
		http.Error(w, err.Error(), code)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // whoever is gone needs it no more
}

func (s *server) join(r *http.Request) (any, error) {
	var q joinRequest
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		return nil, fmt.Errorf("not a request to join: %w", err)
	}
	if err := s.pki.CA.CheckToken(q.Token, time.Now()); err != nil {
		return nil, err
	}
	switch {
	case len(s.config.EtcdEndpoints) > 0:
		return nil, errors.New("etcdEndpoints: the cluster's database is elsewhere, and servers join by members of it; give each server the same etcdEndpoints and keys instead")
	case s.record.Ephemeral:
		return nil, errors.New("ephemeral: a server that does not wait for its disk may forget what it has told others; clusters of several servers are durable")
	case !s.started.Load():
		return nil, busy{errors.New("the server is starting")}
	case q.Withdraw != "":
		return struct{}{}, s.withdraw(r.Context(), q.Withdraw)
	case q.Admit == nil:
		s.log.Warn("the cluster's keys are given to a server that is to join", "to", r.RemoteAddr)
		return s.facts()
	}
	s.log.Info("a server joins", "node", q.Admit.Node, "peer", q.Admit.Peer, "from", r.RemoteAddr)
	ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
	defer cancel()
	return s.admit(ctx, q.Admit)
}

func (s *server) facts() (*facts, error) {
	keys, err := s.pki.Shared()
	if err != nil {
		return nil, err
	}
	f := &facts{
		APIPort: s.record.APIPort, PodCIDRs: s.record.PodCIDRs(), ServiceCIDRs: s.record.ServiceCIDRs(), NodePorts: s.record.NodePorts, Keys: keys,
		sharedSettings: sharedSettings{APINames: s.config.APINames, APIServer: s.config.APIServer, ServiceLoadBalancer: s.config.ServiceLoadBalancer},
	}
	f.Files, err = f.APIServer.read()
	return f, err
}

// admit lets a server become a member, and gives its Node addresses for pods.
func (s *server) admit(ctx context.Context, e *entry) (*admitted, error) {
	if err := s.checkEntry(ctx, e); err != nil {
		return nil, err
	}
	if err := s.share(ctx); err != nil {
		return nil, busy{err}
	}
	members, err := s.etcd.Admit(ctx, e.Peer)
	switch {
	case errors.Is(err, etcd.ErrJoining):
		return nil, busy{s.joining(ctx, err)}
	case errors.Is(err, etcd.ErrMember):
		return nil, s.isMember(ctx, err, e.Peer)
	case errors.Is(err, etcd.ErrMajority):
		return nil, busy{fmt.Errorf("%w; wait for the others to be up, or remove those that are gone with 'yare server-remove'", err)}
	case err != nil:
		return nil, err
	}
	for _, m := range members {
		if m.URL == e.Peer {
			if _, err := s.etcd.Client().Put(ctx, nameKey(m.ID), e.Node); err != nil {
				return nil, busy{fmt.Errorf("write the server's name: %w", err)}
			}
		}
	}
	ranges, err := assignedRanges(ctx, s.admin(), e.Node, func() {})
	if err == nil && len(ranges) == 0 {
		err = fmt.Errorf("node %s has not been given pod addresses of %v: none may be left there ('yare kubectl describe node %[1]s')", e.Node, s.record.PodCIDRs())
	}
	if err != nil {
		return nil, busy{err}
	}
	return &admitted{Members: members, NodeRanges: ranges}, nil
}

// joining adds to an error which member it is that has to vote before another one can be admitted.
func (s *server) joining(ctx context.Context, err error) error {
	names, _ := s.names(ctx) // its ID is as good
	for _, m := range s.etcd.Members() {
		if m.Learner {
			name := s.called(m, names)
			err = fmt.Errorf("%w, %s at %s: wait until it is one, or take it out with 'yare server-remove %s' on a server", err, name, m.URL, name)
		}
	}
	return err
}

// isMember adds to an error how the member at the URL is taken out.
func (s *server) isMember(ctx context.Context, err error, peer string) error {
	names, _ := s.names(ctx) // its ID is as good
	for _, m := range s.etcd.Members() {
		if m.URL == peer {
			err = fmt.Errorf("%w ('yare server-remove %s' on another server)", err, s.called(m, names))
		}
	}
	return err
}

// withdraw takes out a server that was admitted and has not come up, and its Node if there was none before.
func (s *server) withdraw(ctx context.Context, peer string) error {
	for _, m := range s.etcd.Members() {
		if m.URL != peer || !m.Learner || m.Name != "" {
			continue // it is there, and leaves by itself
		}
		names, err := s.names(ctx)
		if err != nil {
			return busy{err}
		}
		s.log.Info("a server that was to join has not come up", "node", names[m.ID], "peer", peer)
		if err := s.etcd.Expel(ctx, m.ID); err != nil {
			return busy{err}
		}
		if names[m.ID] == "" {
			continue // its Node is made later
		}
		n, err := client.Get[*corev1.Node](ctx, s.admin(), api.Key{Name: names[m.ID]})
		if err == nil && len(n.Status.Addresses) == 0 { // its kubelet has never been there
			err = s.admin().Delete(ctx, n, client.DeleteOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return busy{err}
		}
	}
	return nil
}

// checkEntry refuses who would be in the way of another node.
func (s *server) checkEntry(ctx context.Context, e *entry) error {
	if e.Node == "" || len(e.Addresses) == 0 || !strings.HasPrefix(e.Peer, "https://") {
		return errors.New("not a request to be admitted")
	}
	names, err := s.names(ctx)
	if err != nil {
		return busy{err}
	}
	for _, m := range s.etcd.Members() {
		if m.URL != e.Peer && s.called(m, names) == e.Node {
			return fmt.Errorf("nodeName: the cluster has a server %s, at %s; give this machine another name, or take that server out if it is gone for good ('yare server-remove %[1]s' on another server)",
				e.Node, m.URL)
		}
	}
	n, err := client.Get[*corev1.Node](ctx, s.admin(), api.Key{Name: e.Node})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return busy{err}
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP && !slices.ContainsFunc(e.Addresses, func(own netip.Addr) bool { return own.String() == a.Address }) {
			return fmt.Errorf("nodeName: the cluster has a Node %s, at %s; give this machine another name, or delete that Node if it is gone for good ('yare kubectl delete node %s')",
				e.Node, a.Address, e.Node)
		}
	}
	return nil
}

// joiningState is of one that does not vote yet.
const joiningState = "joining"

// serverStatus is one server of several.
type serverStatus struct {
	Name   string `json:"name"` // of its Node
	URL    string `json:"url"`  // for other servers
	State  string `json:"state"`
	Leader bool   `json:"leader,omitempty"` // of the database
	Self   bool   `json:"self,omitempty"`
}

// serversHandler serves serversPath.
func (s *server) serversHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodGet:
			answer(w, func() (any, error) { return s.servers(r.Context()) })
		case http.MethodDelete:
			answer(w, func() (any, error) { return s.remove(r.Context(), r.URL.Query().Get("name")) })
		default:
			http.Error(w, "GET or DELETE", http.StatusMethodNotAllowed)
		}
	})
}

// called is what people know a member by: its Node's name, or its ID as long as nobody has written that down.
func (s *server) called(m etcd.Member, names map[uint64]string) string {
	switch {
	case names[m.ID] != "":
		return names[m.ID]
	case m.ID == s.etcd.Self():
		return s.config.NodeName
	}
	return strconv.FormatUint(m.ID, 16)
}

// servers are all members, empty where there can be none.
func (s *server) servers(ctx context.Context) ([]serverStatus, error) {
	out := []serverStatus{}
	if s.etcd.Self() == 0 {
		return out, nil
	}
	names, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	running, err := s.upNow(ctx)
	if err != nil {
		return nil, err
	}
	all := s.etcd.Members()
	for _, m := range all {
		st := serverStatus{Name: s.called(m, names), URL: m.URL, Leader: m.Leader, Self: m.ID == s.etcd.Self(), State: "down"}
		if running[st.Name] != "" || len(all) == 1 {
			st.State = "up"
		}
		if m.Learner {
			st.State = joiningState
		}
		if st.Self && !s.etcd.Led() {
			st.State = "without a majority"
		}
		out = append(out, st)
	}
	return out, nil
}

// expel removes a member. The database counts as up who has been so for five seconds: those who came up a moment ago are waited for.
func (s *server) expel(ctx context.Context, id uint64, node string) (err error) {
	if id == s.etcd.Self() { // afterwards it has no say
		s.leaving.Store(true)
		if err := s.goes(ctx, node); err != nil {
			s.leaving.Store(false)
			return err
		}
	}
	for end := time.Now().Add(20 * time.Second); ; {
		if err = s.etcd.Expel(ctx, id); !errors.Is(err, etcd.ErrMajority) || time.Now().After(end) {
			break
		}
		if err := run.Pause(ctx, 500*time.Millisecond); err != nil {
			break
		}
	}
	switch {
	case err != nil:
		s.leaving.Store(false)
		return err
	case id != s.etcd.Self():
		return s.goes(ctx, node)
	}
	return nil
}

// remove takes a server out of the cluster: itself, or another one that is gone.
func (s *server) remove(ctx context.Context, name string) (any, error) {
	if s.etcd.Self() == 0 {
		return nil, errors.New("etcdEndpoints: the cluster's database is elsewhere, and no server is a member of it")
	}
	names, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	all := s.etcd.Members()
	var known []string
	var meant []etcd.Member
	for _, m := range all {
		known = append(known, fmt.Sprintf("%s (%x, at %s)", s.called(m, names), m.ID, m.URL))
		if s.called(m, names) == name || strconv.FormatUint(m.ID, 16) == name {
			meant = append(meant, m)
		}
	}
	switch {
	case len(meant) == 0:
		return nil, fmt.Errorf("there is no server %q: there are %s", name, strings.Join(known, ", "))
	case len(meant) > 1:
		return nil, fmt.Errorf("several servers are %q: say which one by its ID: %s", name, strings.Join(known, ", "))
	case len(all) == 1:
		return nil, fmt.Errorf("%s is the only server: 'yare down' ends the cluster", name)
	}
	s.log.Info("a server is removed", "name", name, "peer", meant[0].URL)
	node := s.called(meant[0], names)
	if slices.ContainsFunc(all, func(m etcd.Member) bool { return m.ID != meant[0].ID && s.called(m, names) == node }) {
		node = "" // the other one's presence must stay; this one's ends by itself
	}
	return struct{}{}, s.expel(ctx, meant[0].ID, node)
}
