package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/linux/durable"
	"github.com/yare-dev/yare/pki"
	"github.com/yare-dev/yare/run"
)

// joinFlags say of which cluster a new server becomes one.
type joinFlags struct {
	server, token, tokenFile string
}

func (j *joinFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&j.server, "join", "", "become a further server of a cluster: the URL of one of its servers, https://HOST:6443")
	c.Flags().StringVar(&j.tokenFile, "token-file", "", "for --join: file whose first line is the token that 'yare server-token' has printed there; '-' is what is typed or piped in")
	c.Flags().StringVar(&j.token, "token", "", "the token itself, which other users of this machine then see in its list of processes; it is as secret as the cluster's keys")
}

func (j *joinFlags) check() error {
	if j.token != "" && j.tokenFile != "" {
		return errors.New("--token and --token-file: leave one of them out")
	}
	if (j.server == "") != (j.token+j.tokenFile == "") {
		return errors.New("--join and --token-file are given together: 'yare server-token' on a server of the cluster prints both")
	}
	if j.server == "" {
		return nil
	}
	if u, err := url.Parse(j.server); err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf("--join: %q is not https://HOST:PORT", j.server)
	}
	j.server = strings.TrimRight(j.server, "/") // which paths are put after
	return nil
}

// secret is the token. Whoever has joined needs it no more, and its file may be gone.
func (j *joinFlags) secret(in io.Reader) (string, error) {
	if j.tokenFile == "" {
		return j.token, nil
	}
	if j.tokenFile != "-" {
		f, err := os.Open(j.tokenFile)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		defer f.Close()
		in = f
	}
	line, err := bufio.NewReader(io.LimitReader(in, 64<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	if line = strings.TrimSpace(line); line == "" {
		return "", fmt.Errorf("--token-file: there is no token in the first line of %s", j.tokenFile)
	}
	return line, nil
}

// pendingJoin is what a new server keeps until it is a member: the file is as secret as the token, and goes with it.
type pendingJoin struct {
	Server    string `json:"server"`
	Token     string `json:"token"`
	Authority []byte `json:"authority"` // PEM
	// Peer is the URL of the member that was to be admitted: it may be by now.
	Peer string `json:"peer,omitempty"`
}

func joinFile(r *cluster.Record) string { return filepath.Join(r.DataDir, "join.json") }

// learn asks the cluster what it is, and turns the wish for a server into one for a server of it.
func (j *joinFlags) learn(ctx context.Context, w cluster.Wish, s *settings) (cluster.Wish, *pendingJoin, *facts, error) {
	p := &pendingJoin{Server: j.server}
	if s != nil {
		for _, field := range []string{"apiServer", "apiNames", "serviceLoadBalancer", "podCIDRs", "serviceCIDRs", "etcdEndpoints"} {
			if _, given := s.given[field]; given {
				return w, nil, nil, fmt.Errorf("settings in %s: %s: a server that joins has the cluster's; leave it out", s.file, field)
			}
		}
	}
	if w.Ephemeral != nil && *w.Ephemeral {
		return w, nil, nil, errors.New("ephemeral: a server that does not wait for its disk may forget what it has told others: leave it out")
	}
	var err error
	if p.Token, err = j.secret(os.Stdin); err != nil {
		return w, nil, nil, err
	}
	if p.Authority, err = p.authority(ctx); err != nil {
		return w, nil, nil, fmt.Errorf("join %s: %w", j.server, err)
	}
	f := &facts{}
	if err := p.ask(ctx, joinRequest{Token: p.Token}, f); err != nil {
		return w, nil, nil, fmt.Errorf("join %s: %w", j.server, err)
	}
	if w.APIPort != 0 && w.APIPort != f.APIPort {
		return w, nil, nil, fmt.Errorf("--api-port (apiPort): all servers of a cluster have the same port, %d; leave it out", f.APIPort)
	}
	w.APIPort, w.PodCIDRs, w.ServiceCIDRs, w.NodePorts, w.Joined = f.APIPort, f.PodCIDRs, f.ServiceCIDRs, f.NodePorts, true
	return w, p, f, nil
}

// serverName is in every API server's certificate.
const serverName = "kubernetes.default.svc"

// up is `yare up --join`.
func (j *joinFlags) up(ctx context.Context, w cluster.Wish, s *settings, p *progress) error {
	h := cluster.Host{}
	r, fresh, err := j.claim(ctx, w, s)
	if err != nil {
		return err
	}
	if err = up(ctx, cluster.Wish{Name: r.Name}, nil, p); err != nil && fresh && !hasMember(r) {
		// Nothing half done: it can be joined anew.
		err = keepLog(r, err)
		ctx := context.WithoutCancel(ctx)
		return errors.Join(err, withdraw(ctx, r), h.Remove(ctx, r, false, func(string) {}))
	}
	return err
}

// claim makes the folder of a further server, unless it exists: then the flags have served their purpose.
func (j *joinFlags) claim(ctx context.Context, w cluster.Wish, s *settings) (r *cluster.Record, fresh bool, err error) {
	h := cluster.Host{}
	if r, err := h.Find(w.Name); err == nil {
		if !r.Joined {
			return nil, false, fmt.Errorf("--join: cluster %q of this host is one of its own: choose another --name, or 'yare down%s' first", r.Name, nameFlag(r.Name))
		}
		return r, false, nil
	}
	w, pending, f, err := j.learn(ctx, w, s)
	if err != nil {
		return nil, false, err
	}
	if r, fresh, err = h.Claim(w); err != nil {
		return nil, false, err
	}
	if err := pending.prepare(r, f, s); err != nil {
		return nil, false, errors.Join(err, h.Remove(context.WithoutCancel(ctx), r, false, func(string) {}))
	}
	return r, fresh, nil
}

// authority gets the certificate that the token names.
func (p *pendingJoin) authority(ctx context.Context) ([]byte, error) {
	// What the server shows of itself is not believed: what it answers has the hash that the token says, or is refused.
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer c.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Server+joinPath, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: it is no server of this program", resp.Status)
	}
	_, err = pki.TokenPool(p.Token, b)
	return b, err
}

// ask sends a request until it is answered.
func (p *pendingJoin) ask(ctx context.Context, q joinRequest, into any) error {
	pool, err := pki.TokenPool(p.Token, p.Authority)
	if err != nil {
		return err
	}
	// Every server's certificate has this name, whatever address it is reached at.
	c := &http.Client{Timeout: 90 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: serverName}}}
	defer c.CloseIdleConnections()
	body, err := json.Marshal(q)
	if err != nil {
		return err
	}
	var said error // why it is to be asked again: it says more than that it took too long
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		again, err := p.once(ctx, c, body, into)
		switch {
		case err == nil:
			return nil
		case said != nil && ctx.Err() != nil:
			return said
		case !again:
			return err
		}
		if said = err; run.Pause(ctx, wait) != nil {
			return said
		}
	}
}

// once asks, and says whether to ask again.
func (p *pendingJoin) once(ctx context.Context, c *http.Client, body []byte, into any) (again bool, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Server+joinPath, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	resp, err := c.Do(r)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	switch {
	case err != nil:
		return false, err
	case resp.StatusCode != http.StatusOK:
		return resp.StatusCode == http.StatusServiceUnavailable, errors.New(strings.TrimSpace(string(b)))
	}
	return false, json.Unmarshal(b, into)
}

// prepare puts into the new server's folder its settings, what the cluster has said, and how to be admitted.
func (p *pendingJoin) prepare(r *cluster.Record, f *facts, s *settings) error {
	if err := os.MkdirAll(r.DataDir, 0o711); err != nil {
		return err
	}
	if err := pki.Share(filepath.Join(r.DataDir, "pki"), f.Keys); err != nil {
		return err
	}
	if err := f.sharedSettings.keep(r, f.Files); err != nil {
		return err
	}
	if s != nil {
		if err := r.KeepSettings(s.text); err != nil {
			return err
		}
	}
	return p.keep(r)
}

func (p *pendingJoin) keep(r *cluster.Record) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return durable.Write(joinFile(r), b, 0o600)
}

// pending reads what keep has written.
func pending(r *cluster.Record) (*pendingJoin, error) {
	b, err := os.ReadFile(joinFile(r))
	if err != nil {
		return nil, err
	}
	p := &pendingJoin{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("%s: %w", joinFile(r), err)
	}
	return p, nil
}

// withdraw has the cluster forget a server that may have been admitted and did not come up: it would be in the way of others who join.
func withdraw(ctx context.Context, r *cluster.Record) error {
	p, err := pending(r)
	if errors.Is(err, fs.ErrNotExist) || err == nil && p.Peer == "" {
		return nil
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		err = p.ask(ctx, joinRequest{Token: p.Token, Withdraw: p.Peer}, &struct{}{})
	}
	if err != nil {
		return fmt.Errorf("the cluster may count this server, as one that is joining, until 'yare server-remove' on another server: %w", err)
	}
	return nil
}

// hasMember says that the server has, or had, a member of the database.
func hasMember(r *cluster.Record) bool {
	_, err := os.Stat(filepath.Join(r.DataDir, "etcd", "member", "wal"))
	return err == nil
}

// enter has a server that is to join admitted, and returns the members that it joins; nil where it is one.
func (s *server) enter(ctx context.Context) ([]etcd.Member, error) {
	if !s.record.Joined || hasMember(s.record) {
		return nil, nil
	}
	p, err := pending(s.record)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cluster %q is of another one's servers, and has neither data nor a token: 'yare down --force%s' and join anew: %w", s.record.Name, nameFlag(s.record.Name), err)
	}
	if err != nil {
		return nil, err
	}
	p.Peer = s.peer().URL()
	if err := p.keep(s.record); err != nil {
		return nil, err
	}
	s.log.Info("joining", "server", p.Server, "peer", p.Peer)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	a := &admitted{}
	if err := p.ask(ctx, joinRequest{Token: p.Token, Admit: &entry{Node: s.config.NodeName, Addresses: s.addresses, Peer: p.Peer}}, a); err != nil {
		return nil, fmt.Errorf("join %s: %w", p.Server, err)
	}
	return a.Members, s.record.KeepNodeRanges(a.NodeRanges)
}

// peer is this server's member as others reach it.
func (s *server) peer() *etcd.Peer {
	return &etcd.Peer{
		Address: netip.AddrPortFrom(s.addresses[0], uint16(s.record.Peers())), File: s.pki.PeerFile(), CAFile: s.pki.PeerAuthorityFile(), TLS: s.pki.PeerTLS(),
	}
}

func serverTokenCommand() *cobra.Command {
	var name string
	var life time.Duration
	c := &cobra.Command{
		Use: "server-token", GroupID: "cluster", Args: cobra.NoArgs,
		Short: "Print how another machine becomes a server of this cluster",
		Long: `Print the command by which another machine becomes a server of this cluster, with a token that ends within the hour. Who has the token
gets the cluster's keys: it is as secret as these, and so it is no argument of the command, which every user of that machine could read.
Three servers are one more than has to be up; two are no better than one.`,
		Example: `  yare server-token                                              # on a server
  ssh root@first yare server-token | sh                          # on the other machine: all at once`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := requireRoot(); err != nil {
				return err
			}
			if life <= 0 || life > 24*time.Hour {
				return fmt.Errorf("--ttl: %v is not between a moment and a day", life)
			}
			r, err := cluster.Host{}.Find(name)
			if err != nil {
				return err
			}
			ca, err := pki.LoadAuthority(filepath.Join(r.DataDir, "pki"))
			if err != nil {
				return err
			}
			token, err := ca.Token(life)
			if err != nil {
				return err
			}
			a, err := serverAddress(name, "", r.PodCIDRs())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "yare up --join https://%s --token-file - <<'END'\n%s\nEND\n", netip.AddrPortFrom(a, uint16(r.APIPort)), token)
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", cluster.DefaultName, "name of the cluster")
	c.Flags().DurationVar(&life, "ttl", time.Hour, "for how long the token is good")
	return c
}

func serverRemoveCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "server-remove SERVER", GroupID: "cluster", Args: cobra.ExactArgs(1),
		Short: "Remove a server that is gone from this cluster",
		Long: `Remove a server that is gone from this cluster, by its name in 'yare status' on another server, or its database ID. One that is there leaves by 'yare down'. Its Node stays
until you delete it. This needs a majority of the servers: where so many are gone for good that there is none, there is no way to go on with those
that are left. 'yare down --force' removes what is left of them, and a new cluster begins without objects.`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := requireRoot(); err != nil {
				return err
			}
			r, err := cluster.Host{}.Find(name)
			if err != nil {
				return err
			}
			if err := askServer(c.Context(), r, http.MethodDelete, args[0], &struct{}{}); err != nil {
				return fmt.Errorf("remove server %s: %w", args[0], err)
			}
			newProgress(c.OutOrStdout()).done("server %q is no member of cluster %q any more; its Node is left to you: 'yare kubectl delete node %s'", args[0], name, args[0])
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", cluster.DefaultName, "name of the cluster on this host")
	return c
}

// askServer asks the server on this host about servers, as the administrator.
func askServer(ctx context.Context, r *cluster.Record, method, name string, into any) error {
	at := serversPath
	if name != "" {
		at += "?name=" + url.QueryEscape(name)
	}
	resp, err := askAsAdmin(ctx, r, 30*time.Second, method, at)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(b)))
	}
	return json.Unmarshal(b, into)
}
