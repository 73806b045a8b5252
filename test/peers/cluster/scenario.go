package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/yare-dev/yare/test/peers/host"
)

// Scenario is what every cluster must do, whoever's its programs are: a Deployment of two pods with a ConfigMap volume becomes
// available, tells its log, runs a command, answers by its Service from a pod and from the host, follows an update, and goes
// without leaving anything on the host.
func (c *Cluster) Scenario(ctx context.Context) error {
	s, err := c.scenario()
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"node ready", s.nodeReady},
		{"deployment available", s.deploy},
		{"log", s.log},
		{"exec", s.exec},
		{"service from a pod", s.serviceFromPod},
		{"service from the host", s.serviceFromHost},
		{"rolling update", s.update},
		{"deletion", s.remove},
		{"nothing left", s.nothingLeft},
	} {
		limit, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err := step.do(limit)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// Ready waits until the node is.
func (c *Cluster) Ready(ctx context.Context) error {
	s, err := c.scenario()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return s.nodeReady(ctx)
}

func (c *Cluster) scenario() (*scenario, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, err
	}
	api, err := kubernetes.NewForConfig(cfg)
	return &scenario{cluster: c, cfg: cfg, api: api}, err
}

type scenario struct {
	cluster *Cluster
	cfg     *rest.Config
	api     *kubernetes.Clientset

	pods    []corev1.Pod
	service *corev1.Service
}

const (
	space = "scenario"
	page  = "a page out of a ConfigMap"
)

var labels = map[string]string{"app": "web"}

// until waits while all programs run.
func (s *scenario) until(ctx context.Context, what string, done func() error) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	return host.Until(ctx, what, func() error {
		if err := s.cluster.host.Alive(); err != nil {
			fail(err)
			return err
		}
		return done()
	})
}

func (s *scenario) nodeReady(ctx context.Context) error {
	return s.until(ctx, "the node", func() error {
		n, err := s.api.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status != corev1.ConditionTrue {
				return fmt.Errorf("not ready: %s", cond.Message)
			}
		}
		if len(n.Spec.Taints) > 0 || n.Spec.PodCIDR != nodePods {
			return fmt.Errorf("taints %v, range of pods %q", n.Spec.Taints, n.Spec.PodCIDR)
		}
		return nil
	})
}

func (s *scenario) deploy(ctx context.Context) error {
	if _, err := s.api.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: space}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	pages := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "pages"}, Data: map[string]string{"index.html": page}}
	if _, err := s.api.CoreV1().ConfigMaps(space).Create(ctx, pages, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := s.api.AppsV1().Deployments(space).Create(ctx, deployment(), metav1.CreateOptions{}); err != nil {
		return err
	}
	var err error
	s.service, err = s.api.CoreV1().Services(space).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return s.available(ctx)
}

func deployment() *appsv1.Deployment {
	two, now := int32(2), int64(1)
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &now,
			Containers: []corev1.Container{{
				Name: "web", Image: WebImage, ImagePullPolicy: corev1.PullNever,
				Command:        []string{"sh", "-c", "echo serving $GREETING; exec web"},
				Env:            []corev1.EnvVar{{Name: "GREETING", Value: "one"}},
				VolumeMounts:   []corev1.VolumeMount{{Name: "pages", MountPath: "/data"}},
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}},
			}},
			Volumes: []corev1.Volume{{Name: "pages", VolumeSource: corev1.VolumeSource{
				ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "pages"}}}}},
		}},
	}}
}

// available waits until the Deployment is as it should be, and notes its pods.
func (s *scenario) available(ctx context.Context) error {
	return s.until(ctx, "the deployment", func() error {
		d, err := s.api.AppsV1().Deployments(space).Get(ctx, "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		pods, err := s.api.CoreV1().Pods(space).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if st := d.Status; st.ObservedGeneration != d.Generation || st.UpdatedReplicas != 2 || st.AvailableReplicas != 2 || st.Replicas != 2 || len(pods.Items) != 2 {
			return fmt.Errorf("status %+v, pods:%s", st, briefly(pods.Items))
		}
		s.pods = pods.Items
		return nil
	})
}

func briefly(pods []corev1.Pod) string {
	var b strings.Builder
	for _, p := range pods {
		fmt.Fprintf(&b, " %s %s on %q", p.Name, p.Status.Phase, p.Spec.NodeName)
		for _, st := range p.Status.ContainerStatuses {
			fmt.Fprintf(&b, " %v", st.State.String())
		}
	}
	return b.String()
}

func (s *scenario) log(ctx context.Context) error {
	for _, p := range s.pods {
		text, err := s.api.CoreV1().Pods(space).GetLogs(p.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
		if err != nil {
			return err
		}
		if string(text) != "serving one\n" {
			return fmt.Errorf("log of %s: %q", p.Name, text)
		}
	}
	return nil
}

// run runs a command in a pod, over WebSocket as kubectl does and over SPDY as it did.
func (s *scenario) run(ctx context.Context, pod, in string, command ...string) (string, error) {
	r := s.api.CoreV1().RESTClient().Post().Resource("pods").Namespace(space).Name(pod).SubResource("exec").VersionedParams(
		&corev1.PodExecOptions{Container: "web", Command: command, Stdin: in != "", Stdout: true, Stderr: true}, scheme.ParameterCodec)
	socket, err := remotecommand.NewWebSocketExecutor(s.cfg, "GET", r.URL().String())
	if err != nil {
		return "", err
	}
	spdy, err := remotecommand.NewSPDYExecutor(s.cfg, "POST", r.URL())
	if err != nil {
		return "", err
	}
	var said string
	for _, e := range []remotecommand.Executor{socket, spdy} {
		var out, errs bytes.Buffer
		o := remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}
		if in != "" {
			o.Stdin = strings.NewReader(in)
		}
		if err := e.StreamWithContext(ctx, o); err != nil {
			return "", fmt.Errorf("%v in %s: %w: %s", command, pod, err, errs.String())
		}
		said = out.String()
	}
	return said, nil
}

func (s *scenario) exec(ctx context.Context) error {
	for _, p := range s.pods {
		if out, err := s.run(ctx, p.Name, "", "cat", "/data/index.html"); err != nil || out != page {
			return fmt.Errorf("file of the ConfigMap: %q, %w", out, orMismatch(err))
		}
		if out, err := s.run(ctx, p.Name, "through", "cat"); err != nil || out != "through" {
			return fmt.Errorf("standard input: %q, %w", out, orMismatch(err))
		}
		var exit interface{ ExitStatus() int }
		if _, err := s.run(ctx, p.Name, "", "sh", "-c", "exit 3"); !errors.As(err, &exit) || exit.ExitStatus() != 3 {
			return fmt.Errorf("exit code: %v", err)
		}
	}
	return nil
}

var errMismatch = errors.New("not what was expected")

func orMismatch(err error) error {
	if err == nil {
		return errMismatch
	}
	return err
}

func (s *scenario) url() string { return "http://" + s.service.Spec.ClusterIP + "/" }

// serviceFromPod asks the Service from each pod, often enough to be sent to the asking pod itself as well.
func (s *scenario) serviceFromPod(ctx context.Context) error {
	return s.until(ctx, "the Service", func() error {
		for _, p := range s.pods {
			out, err := s.run(ctx, p.Name, "", "web", "-times", "8", "-get", s.url())
			if err != nil || out != strings.Repeat(page, 8) {
				return fmt.Errorf("%q, %w", out, orMismatch(err))
			}
		}
		return nil
	})
}

func (s *scenario) serviceFromHost(ctx context.Context) error {
	return s.until(ctx, "the Service", func() error {
		out, err := s.cluster.host.Command(s.cluster.programs.Path("web"), "-get", s.url()).CombinedOutput()
		if err != nil || string(out) != page {
			return fmt.Errorf("%q, %w", out, orMismatch(err))
		}
		return nil
	})
}

// update changes the template; the old pods go, the new ones serve.
func (s *scenario) update(ctx context.Context) error {
	patch := []byte(`{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"GREETING","value":"two"}]}]}}}}`)
	_, err := s.api.AppsV1().Deployments(space).Patch(ctx, "web", "application/strategic-merge-patch+json", patch, metav1.PatchOptions{})
	if err != nil {
		return err
	}
	if err := s.available(ctx); err != nil {
		return err
	}
	for _, p := range s.pods {
		r, err := s.api.CoreV1().Pods(space).GetLogs(p.Name, &corev1.PodLogOptions{}).Stream(ctx)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
		if string(text) != "serving two\n" {
			return fmt.Errorf("log of %s: %q", p.Name, text)
		}
	}
	return s.serviceFromHost(ctx)
}

// remove deletes the namespace and waits until it has gone with all that was in it.
func (s *scenario) remove(ctx context.Context) error {
	if err := s.api.CoreV1().Namespaces().Delete(ctx, space, metav1.DeleteOptions{}); err != nil {
		return err
	}
	return s.until(ctx, "the namespace gone", func() error {
		n, err := s.api.CoreV1().Namespaces().Get(ctx, space, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("still there: %v", n.Status.Conditions)
	})
}

// nothingLeft waits until the host has no process, mount, link or rule of a pod.
func (s *scenario) nothingLeft(ctx context.Context) error {
	h := s.cluster.host
	return s.until(ctx, "the host without traces", func() error {
		for _, sub := range []string{"kubepods", "runtime"} {
			if pids, err := h.Processes(sub); err != nil || len(pids) > 0 {
				return fmt.Errorf("processes of pods in %s: %v, %w", sub, pids, orMismatch(err))
			}
		}
		mounts, err := h.Mounts()
		if err != nil {
			return err
		}
		mounts = slices.DeleteFunc(mounts, func(p string) bool {
			return !strings.HasSuffix(p, "/rootfs") && !(strings.HasPrefix(p, h.Dir) && strings.Contains(p, "/pods/"))
		})
		if len(mounts) > 0 {
			return fmt.Errorf("mounts of pods: %v", mounts)
		}
		const look = `nft list ruleset 2>/dev/null | grep -c "$1" || true; ls "$0/kubelet/pods" | wc -l`
		out, err := h.Command("sh", "-c", look, h.Dir, s.service.Spec.ClusterIP).CombinedOutput()
		if err != nil || strings.Join(strings.Fields(string(out)), " ") != "0 0" {
			return fmt.Errorf("rules and folders: %q, %w", out, orMismatch(err))
		}
		return nil
	})
}
