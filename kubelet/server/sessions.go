package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/stream"
)

// on reads a boolean option of a session.
func on(q url.Values, name string) bool {
	v := q.Get(name)
	return v == "1" || v == "true"
}

// wanted returns which streams a session shall have. A terminal has one output.
func wanted(q url.Values) stream.Streams {
	tty := on(q, "tty")
	return stream.Streams{In: on(q, "input"), Out: on(q, "output"), Err: on(q, "error") && !tty, TTY: tty}
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	_, c, ok := s.find(w, r)
	if !ok || !running(w, c) {
		return
	}
	has := wanted(r.URL.Query())
	got, err := s.CRI.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: id(c.ContainerID), Cmd: r.URL.Query()["command"], Tty: has.TTY, Stdin: has.In, Stdout: has.Out, Stderr: has.Err})
	s.session(w, r, got.GetUrl(), err, has)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	_, c, ok := s.find(w, r)
	if !ok || !running(w, c) {
		return
	}
	has := wanted(r.URL.Query())
	got, err := s.CRI.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{
		ContainerId: id(c.ContainerID), Tty: has.TTY, Stdin: has.In, Stdout: has.Out, Stderr: has.Err})
	s.session(w, r, got.GetUrl(), err, has)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	pod := s.Pods.Find(r.PathValue("namespace"), r.PathValue("pod"))
	if pod == nil || r.PathValue("uid") != "" && string(pod.UID) != r.PathValue("uid") {
		http.Error(w, fmt.Sprintf("pod %q not found", r.PathValue("namespace")+"/"+r.PathValue("pod")), http.StatusNotFound)
		return
	}
	ports, err := forwarded(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	sandboxes, err := s.CRI.Runtime.ListPodSandbox(r.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{spec.PodUIDLabel: string(pod.UID)}}})
	if err == nil && len(sandboxes.Items) == 0 {
		http.Error(w, fmt.Sprintf("pod %q does not run", pod.Namespace+"/"+pod.Name), http.StatusNotFound)
		return
	}
	var got *runtimeapi.PortForwardResponse
	if err == nil {
		got, err = s.CRI.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: sandboxes.Items[0].Id, Port: ports})
	}
	s.session(w, r, got.GetUrl(), err, stream.Streams{})
}

// forwarded returns the ports that a session is for. Over SPDY, tunnelled or not, each stream says its own; the channel
// protocols need to know them beforehand.
func forwarded(r *http.Request) (ports []int32, err error) {
	texts := r.URL.Query()["port"]
	if stream.Tunnelled(r) {
		return nil, nil
	}
	if len(texts) == 0 && wsstream.IsWebSocketRequest(r) {
		return nil, errors.New(`query parameter "port" is required`)
	}
	for _, text := range strings.Split(strings.Join(texts, ","), ",") {
		if text == "" && len(texts) == 0 {
			break
		}
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("port %q is not a port number", text)
		}
		ports = append(ports, int32(n))
	}
	return ports, nil
}

// run executes a command and answers with its output.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	_, c, ok := s.find(w, r)
	if !ok || !running(w, c) {
		return
	}
	cmd := r.FormValue("cmd")
	got, err := s.CRI.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id(c.ContainerID), Cmd: []string{"/bin/sh", "-c", cmd}})
	if err != nil {
		refuse(w, err)
		return
	}
	if got.ExitCode != 0 {
		w.WriteHeader(http.StatusInternalServerError)
	}
	w.Write(got.Stdout)
	w.Write(got.Stderr)
}

func running(w http.ResponseWriter, c *corev1.ContainerStatus) bool {
	if c.State.Running == nil {
		http.Error(w, fmt.Sprintf("container %q is not running", c.Name), http.StatusBadRequest)
		return false
	}
	return true
}

// session passes the request on to where the runtime serves the session that it has prepared.
func (s *Server) session(w http.ResponseWriter, r *http.Request, to string, err error, has stream.Streams) {
	if err != nil {
		refuse(w, err)
		return
	}
	u, err := url.Parse(to)
	if err == nil && u.Host == "" {
		err = errors.New("the runtime names no host for its session")
	}
	if err != nil {
		refuse(w, err)
		return
	}
	switch {
	case stream.Translated(r):
		if err := stream.Translate(w, r, u, s.runtime, has); err != nil {
			s.Log.Debug("session failed", "err", err)
		}
	case stream.Tunnelled(r):
		if err := stream.Tunnel(w, r, u, s.runtime); err != nil {
			s.broken(w, r, err)
		}
	default:
		proxy := &httputil.ReverseProxy{
			Transport: s.runtime,
			Rewrite: func(p *httputil.ProxyRequest) {
				p.Out.URL, p.Out.Host = u, u.Host
			},
			FlushInterval: -1,
			ErrorHandler:  s.broken,
		}
		proxy.ServeHTTP(w, r)
	}
}

// broken answers when the runtime does not serve what it has promised.
func (s *Server) broken(w http.ResponseWriter, _ *http.Request, err error) {
	s.Log.Debug("session failed", "err", err)
	http.Error(w, err.Error(), http.StatusBadGateway)
}

// refuse answers with an error of the runtime.
func refuse(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch status.Code(err) {
	case codes.NotFound:
		code = http.StatusNotFound
	case codes.InvalidArgument, codes.FailedPrecondition:
		code = http.StatusBadRequest
	}
	http.Error(w, status.Convert(err).Message(), code)
}
