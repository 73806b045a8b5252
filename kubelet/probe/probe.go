// Package probe asks containers how they are: liveness, readiness and startup probes by exec, HTTP, TCP and gRPC. It
// replaces upstream's prober manager.
//
// A Set watches the containers of one pod. Each probe of each container has one goroutine with its own timer:
//
//	wait for startup probe (liveness, readiness) -> initial delay -> probe -> every period -> ...
//
// A result counts when it came failureThreshold or successThreshold times in a row. Before that the container is not
// ready, not unwell, and not started where it has a startup probe. A container whose liveness or startup probe gave up is not probed any
// more: it has to be replaced.
//
// Invariant: when Close returns, no goroutine of the Set is left.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// MaxOutput is how much of an answer is kept, in bytes.
const MaxOutput = 10 << 10

// Exec runs a command in a container. A command that does not end in time is an error that is
// context.DeadlineExceeded. Of the output no more than MaxOutput is returned.
type Exec func(ctx context.Context, containerID string, command []string, timeout time.Duration) (exit int, output string, err error)

// Runner performs single probes.
type Runner struct {
	Exec Exec
	// Dial opens connections; nil is the host's network.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (r Runner) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if r.Dial != nil {
		return r.Dial(ctx, network, address)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// Subject is what is probed.
type Subject struct {
	Container *corev1.Container
	ID        string
	IP        string // of the pod
}

// Run performs the handler once. ok is the verdict, text what is shown of it. The error says that no verdict could be had.
func (r Runner) Run(ctx context.Context, h corev1.ProbeHandler, timeout time.Duration, s Subject) (ok bool, text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case h.Exec != nil:
		return r.exec(ctx, h.Exec, timeout, s)
	case h.HTTPGet != nil:
		u, header, err := HTTPTarget(h.HTTPGet, s.Container, s.IP)
		if err != nil {
			return false, "", err
		}
		return r.get(ctx, u, header)
	case h.TCPSocket != nil:
		port, err := Port(h.TCPSocket.Port, s.Container)
		if err != nil {
			return false, "", err
		}
		host := h.TCPSocket.Host
		if host == "" {
			host = s.IP
		}
		conn, err := r.dial(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return false, err.Error(), nil
		}
		return true, "", conn.Close()
	case h.GRPC != nil:
		return r.grpc(ctx, h.GRPC, s)
	}
	return false, "", errors.New("the probe has no handler")
}

func (r Runner) exec(ctx context.Context, h *corev1.ExecAction, timeout time.Duration, s Subject) (bool, string, error) {
	exit, output, err := r.Exec(ctx, s.ID, h.Command, timeout)
	if errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded {
		return false, fmt.Sprintf("command timed out after %v", timeout), nil
	}
	if err != nil {
		return false, "", err
	}
	return exit == 0, output, nil
}

// HTTPTarget returns what an HTTP action asks for.
func HTTPTarget(h *corev1.HTTPGetAction, c *corev1.Container, podIP string) (*url.URL, http.Header, error) {
	port, err := Port(h.Port, c)
	if err != nil {
		return nil, nil, err
	}
	host := h.Host
	if host == "" {
		host = podIP
	}
	u, err := url.Parse(h.Path)
	if err != nil {
		u = &url.URL{Path: h.Path}
	}
	u.Scheme = strings.ToLower(string(h.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	header := http.Header{}
	for _, f := range h.HTTPHeaders {
		header.Add(f.Name, f.Value)
	}
	return u, header, nil
}

func (r Runner) get(ctx context.Context, u *url.URL, header http.Header) (bool, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return false, "", err
	}
	req.Header = header
	if header.Get("User-Agent") == "" {
		header.Set("User-Agent", "kube-probe/1.37")
	}
	if header.Get("Accept") == "" {
		header.Set("Accept", "*/*")
	}
	if host := header.Get("Host"); host != "" {
		req.Host = host
	}
	transport := &http.Transport{
		DialContext: r.dial, DisableKeepAlives: true, DisableCompression: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the probe shows that something answers, not who
	}
	c := http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if next.URL.Hostname() != u.Hostname() || len(via) >= 10 {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := c.Do(req)
	if err != nil {
		return false, err.Error(), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxOutput))
	if err != nil {
		return false, err.Error(), nil
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return true, string(body), nil
	}
	return false, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), nil
}

func (r Runner) grpc(ctx context.Context, h *corev1.GRPCAction, s Subject) (bool, string, error) {
	target := net.JoinHostPort(s.IP, strconv.Itoa(int(h.Port)))
	conn, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/1.37"),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return r.dial(ctx, "tcp", addr) }))
	if err != nil {
		return false, "", fmt.Errorf("dial %s: %w", target, err)
	}
	defer conn.Close()
	service := ""
	if h.Service != nil {
		service = *h.Service
	}
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		switch status.Code(err) {
		case codes.Unimplemented:
			return false, fmt.Sprintf("this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", status.Convert(err).Message()), nil
		case codes.DeadlineExceeded:
			return false, "timeout: health rpc did not complete in time", nil
		}
		return false, "health rpc: " + err.Error(), nil
	}
	if resp.Status != healthpb.HealthCheckResponse_SERVING {
		return false, fmt.Sprintf("service unhealthy (responded with %q)", resp.Status), nil
	}
	return true, "service healthy", nil
}

// Port resolves a port number or the name of one of the container's ports.
func Port(p intstr.IntOrString, c *corev1.Container) (int, error) {
	if p.Type == intstr.Int {
		if p.IntVal < 1 || p.IntVal > 65535 {
			return 0, fmt.Errorf("port %d is out of range", p.IntVal)
		}
		return int(p.IntVal), nil
	}
	for _, have := range c.Ports {
		if have.Name == p.StrVal {
			return int(have.ContainerPort), nil
		}
	}
	n, err := strconv.ParseUint(p.StrVal, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("container %s has no port named %q", c.Name, p.StrVal)
	}
	return int(n), nil
}
