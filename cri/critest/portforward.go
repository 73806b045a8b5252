package critest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func portForwardCases() []Case {
	return []Case{
		{"SPDY: a port of the pod is reached", 0, forwardSPDY},
		{"SPDY: many connections at once", 0, forwardMany},
		{"SPDY: two ports at once", 0, forwardTwo},
		{"SPDY: much in and much out", 0, forwardMuch},
		{"SPDY: nobody there ends the connection", 0, forwardRefused},
		{"SPDY: a port of a pod with the host's network is reached", 0, forwardHost},
		{"WebSocket: a port of the pod is reached", 0, forwardSocket},
		{"a sandbox that is not there is not found", 0, forwardUnknown},
		{"a stopped sandbox is refused", 0, forwardStopped},
	}
}

func (t *T) forwardURL(pod string, ports ...int32) string {
	t.Helper()
	r, err := t.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: ports})
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	return r.Url
}

// forwarded listens on loopback for ports of the pod and returns the addresses.
func (t *T) forwarded(pod string, ports ...int32) []string {
	t.Helper()
	u, err := url.Parse(t.forwardURL(pod, ports...))
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
	if err != nil {
		t.Fatal(err)
	}
	var wishes []string
	for _, p := range ports {
		wishes = append(wishes, fmt.Sprintf("0:%d", p))
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u), []string{"127.0.0.1"}, wishes, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	t.Cleanup(func() { // before the pod's
		close(stop)
		<-done
	})
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatalf("forward: %v", err)
	}
	local, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for _, p := range local {
		addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", p.Local))
	}
	return addresses
}

// web serves a text on ports of the pod's loopback.
func (t *T) web(pod pods, text string, ports ...int) {
	t.Helper()
	script := []string{"mkdir -p /tmp/www; printf '%s' '" + text + "' > /tmp/www/index.html", "cp /bin/busybox /tmp/www/big 2>/dev/null || cat /bin/busybox > /tmp/www/big"}
	for _, p := range ports {
		script = append(script, fmt.Sprintf("httpd -p 127.0.0.1:%d -h /tmp/www", p))
	}
	c := t.script(append(script, "touch /tmp/ready; exec sleep 100000")...)
	if pod.config.Linux.SecurityContext.NamespaceOptions.Network == runtimeapi.NamespaceMode_NODE {
		inHostNetwork(c)
	}
	t.ready(t.run(pod, c))
}

func (t *T) get(address, path string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		t.Errorf("%v", err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%v", err)
	}
	return string(body)
}

func forwardSPDY(t *T) {
	pod := t.own()
	t.web(pod, "from the pod", 8080)
	t.same("answer", t.get(t.forwarded(pod.id, 8080)[0], "/"), "from the pod")
}

func forwardMany(t *T) {
	pod := t.own()
	t.web(pod, "from the pod", 8080)
	address := t.forwarded(pod.id, 8080)[0]
	got := make(chan string)
	for range 10 {
		go func() { got <- t.get(address, "/") }()
	}
	for range 10 {
		t.same("answer", <-got, "from the pod")
	}
}

func forwardTwo(t *T) {
	pod := t.own()
	t.web(pod, "from the pod", 8080, 8081)
	for _, a := range t.forwarded(pod.id, 8080, 8081) {
		t.same("answer", t.get(a, "/"), "from the pod")
	}
}

func forwardMuch(t *T) {
	pod := t.own()
	t.web(pod, "from the pod", 8080)
	if n := len(t.get(t.forwarded(pod.id, 8080)[0], "/big")); n < 1<<19 {
		t.Errorf("%d bytes", n)
	}
}

func forwardRefused(t *T) {
	conn, err := net.Dial("tcp", t.forwarded(t.own().id, 81)[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); len(b) != 0 {
		t.Errorf("%q, %v", b, err)
	}
}

func forwardHost(t *T) {
	pod := t.own(hostNetwork)
	// Free here, and so most likely where the server is, if that is elsewhere.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	t.web(pod, "from the host", port)
	t.same("answer", t.get(t.forwarded(pod.id, int32(port))[0], "/"), "from the host")
}

// Two channels for each port, data and errors, whose first frames hold the port.
func forwardSocket(t *T) {
	pod := t.own()
	t.web(pod, "from the pod", 8080)
	s := t.dial(t.forwardURL(pod.id, 8080) + "?port=8080")
	for channel := range byte(2) {
		var frame []byte
		for len(frame) <= 1 { // an empty frame opens a channel
			if err := websocket.Message.Receive(s.Conn, &frame); err != nil {
				t.Fatal(err)
			}
		}
		if len(frame) != 3 || frame[0] != channel || binary.LittleEndian.Uint16(frame[1:]) != 8080 {
			t.Errorf("channel %d begins with %v", channel, frame)
		}
	}
	if err := s.send(0, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if c := s.receive(); !strings.HasSuffix(c[0], "from the pod") || c[1] != "" {
		t.Errorf("%q", c)
	}
}

func forwardUnknown(t *T) {
	_, err := t.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: "0123456789abcdef", Port: []int32{80}})
	t.refused("port-forward to nothing", err, codes.NotFound)
}

func forwardStopped(t *T) {
	pod, _ := t.newPod()
	t.stopPod(pod)
	_, err := t.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{80}})
	t.refused("port-forward to a stopped sandbox", err)
}
