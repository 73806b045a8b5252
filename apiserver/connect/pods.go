package connect

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/stream"
)

// methods are all of them, for proxies.
func methods() []string {
	return []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodHead, http.MethodOptions}
}

// Pods returns the streaming subresources of pods: log, exec, attach, portforward and proxy.
func Pods(d Deps) map[string]*rest.Subresource {
	b := newBridge(d)
	session := func(kind string, opens func() runtime.Object, path func(*corev1.Pod, url.Values) (string, url.Values, error)) *rest.Subresource {
		return &rest.Subresource{
			Kind: kind, Opens: opens, Methods: []string{http.MethodGet, http.MethodPost},
			Connect: func(ctx context.Context, parent api.Object, w http.ResponseWriter, r *http.Request) error {
				return b.toKubelet(ctx, parent.(*corev1.Pod), path, false, w, r)
			},
		}
	}
	return map[string]*rest.Subresource{
		"exec":        session("PodExecOptions", func() runtime.Object { return &corev1.PodExecOptions{} }, execPath),
		"attach":      session("PodAttachOptions", func() runtime.Object { return &corev1.PodAttachOptions{} }, attachPath),
		"portforward": session("PodPortForwardOptions", func() runtime.Object { return &corev1.PodPortForwardOptions{} }, forwardPath),
		"log": {
			Kind: "Pod", Methods: []string{http.MethodGet},
			Connect: func(ctx context.Context, parent api.Object, w http.ResponseWriter, r *http.Request) error {
				return b.toKubelet(ctx, parent.(*corev1.Pod), logPath, true, w, r)
			},
		},
		"proxy": {
			Kind: "PodProxyOptions", Opens: func() runtime.Object { return &corev1.PodProxyOptions{} }, Methods: methods(),
			Connect: func(ctx context.Context, parent api.Object, w http.ResponseWriter, r *http.Request) error {
				return b.toPod(ctx, parent.(*corev1.Pod), w, r)
			},
		},
	}
}

// toKubelet proxies to the kubelet of the pod's node, at the path that the function makes of the pod and the query.
func (b *bridge) toKubelet(ctx context.Context, pod *corev1.Pod, path func(*corev1.Pod, url.Values) (string, url.Values, error), explain bool, w http.ResponseWriter, r *http.Request) error {
	at, q, err := path(pod, r.URL.Query())
	if err != nil {
		return err
	}
	if pod.Spec.NodeName == "" {
		if explain { // a log that is only not there yet is empty
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(http.StatusOK)
			return nil
		}
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	node, err := b.node(pod.Spec.NodeName)
	if err != nil {
		return err
	}
	u, err := kubeletURL(node)
	if err != nil {
		return err
	}
	u.Path, u.RawQuery = at, q.Encode()
	knows := slices.Contains(node.Status.DeclaredFeatures, stream.NodeFeature)
	switch r = r.WithContext(ctx); {
	case explain && wsstream.IsWebSocketRequest(r):
		return b.overWebSocket(ctx, u, w, r)
	case !knows && stream.Translated(r):
		has := stream.Streams{In: q.Has("input"), Out: q.Has("output"), Err: q.Has("error") && !q.Has("tty"), TTY: q.Has("tty")}
		_ = stream.Translate(w, r, u, b.kubelet, has) // which answers the client itself
		return nil
	case !knows && stream.Tunnelled(r):
		if err := stream.Tunnel(w, r, u, b.kubelet); err != nil {
			return apierrors.NewInternalError(fmt.Errorf("error dialing backend: %w", err))
		}
		return nil
	}
	return b.proxy(ctx, session{to: u, transport: b.kubelet, explain: explain}, w, r)
}

func execPath(pod *corev1.Pod, q url.Values) (string, url.Values, error) {
	if len(q["command"]) == 0 {
		return "", nil, apierrors.NewBadRequest("you must specify at least 1 command for the container")
	}
	return streamPath("/exec/", pod, q)
}

func attachPath(pod *corev1.Pod, q url.Values) (string, url.Values, error) {
	return streamPath("/attach/", pod, q)
}

// streamPath translates the API's options into the kubelet's.
func streamPath(verb string, pod *corev1.Pod, q url.Values) (string, url.Values, error) {
	c, err := container(pod, q.Get("container"))
	if err != nil {
		return "", nil, err
	}
	out := url.Values{}
	for from, to := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"} {
		if on(q, from) {
			out.Set(to, "1")
		}
	}
	if len(out) == 0 || len(out) == 1 && out.Has("tty") {
		return "", nil, apierrors.NewBadRequest("you must specify at least one of stdin, stdout, stderr")
	}
	if cmd := q["command"]; len(cmd) > 0 {
		out["command"] = cmd
	}
	return verb + pod.Namespace + "/" + pod.Name + "/" + c, out, nil
}

// on reads a boolean option, which is set also by its mere presence.
func on(q url.Values, name string) bool {
	v, given := q[name]
	return given && v[0] != "false" && v[0] != "0"
}

func forwardPath(pod *corev1.Pod, q url.Values) (string, url.Values, error) {
	out := url.Values{}
	for _, p := range q["ports"] {
		for part := range strings.SplitSeq(p, ",") {
			out.Add("port", part)
		}
	}
	return "/portForward/" + pod.Namespace + "/" + pod.Name, out, nil
}

func logPath(pod *corev1.Pod, q url.Values) (string, url.Values, error) {
	c, err := container(pod, q.Get("container"))
	if err != nil {
		return "", nil, err
	}
	if q.Has("sinceSeconds") && q.Has("sinceTime") {
		return "", nil, apierrors.NewBadRequest("at most one of `sinceTime` or `sinceSeconds` may be specified")
	}
	out := url.Values{}
	// Those of PodLogOptions that the kubelet knows.
	for _, o := range []string{"follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"} {
		if q.Has(o) {
			out.Set(o, q.Get(o))
		}
	}
	return "/containerLogs/" + pod.Namespace + "/" + pod.Name + "/" + c, out, nil
}

// container checks the name of a container, or finds it where there is only one.
func container(pod *corev1.Pod, name string) (string, error) {
	regular, start, debug := names(pod)
	if name == "" {
		if len(regular) == 1 {
			return regular[0], nil
		}
		text := fmt.Sprintf("a container name must be specified for pod %s, choose one of: %v", pod.Name, regular)
		if len(start) > 0 {
			text += fmt.Sprintf(" or one of the init containers: %v", start)
		}
		if len(debug) > 0 {
			text += fmt.Sprintf(" or one of the ephemeral containers: %v", debug)
		}
		return "", apierrors.NewBadRequest(text)
	}
	for _, all := range [][]string{regular, start, debug} {
		for _, c := range all {
			if c == name {
				return name, nil
			}
		}
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
}

func names(pod *corev1.Pod) (regular, start, debug []string) {
	for i := range pod.Spec.Containers {
		regular = append(regular, pod.Spec.Containers[i].Name)
	}
	for i := range pod.Spec.InitContainers {
		start = append(start, pod.Spec.InitContainers[i].Name)
	}
	for i := range pod.Spec.EphemeralContainers {
		debug = append(debug, pod.Spec.EphemeralContainers[i].Name)
	}
	return regular, start, debug
}
