package pod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/kubelet/volume"
)

// hold notes why a container does not run, says so (as upstream at each try: the Events are counted), and has it tried again later.
func (w *worker) hold(pod *corev1.Pod, name string, c Condition, text string) {
	w.sayAt(pod, spec.Path(pod, name), corev1.EventTypeWarning, "Failed", "Error: %s", text)
	w.waiting[name] = &c
	w.at(w.retries.grow(name, w.now()))
}

// startContainer starts one container as far as it can. started says that it runs now; wait that later ones must not
// start before it. With blocked, only its images are made ready.
func (w *worker) startContainer(ctx context.Context, pod *corev1.Pod, v *View, s Start, blocked bool) (started, wait bool) {
	name := s.Container.Name
	if until := w.retries.until(name); w.now().Before(until) {
		w.at(until)
		return false, false
	}
	needs := needs(pod, s)
	image, images, held := w.images(ctx, pod, needs)
	switch {
	case held == nil:
	case held.Reason == reasonPull || held.Reason == reasonBackOff: // these have their own times
		w.waiting[name] = held
	default:
		w.hold(pod, name, *held, held.Reason)
	}
	if image == nil {
		return false, w.pulling(needs)
	}
	if blocked {
		return false, true
	}
	switch ready, err := w.prepareDevices(ctx, pod, name); {
	case err != nil:
		w.hold(pod, name, Condition{"CreateContainerError", message(err)}, message(err))
		return false, false
	case !ready:
		return false, true
	}
	id, err := w.create(ctx, pod, v, s, image, images)
	if err != nil {
		if ctx.Err() != nil {
			return false, true
		}
		reason := "CreateContainerError"
		if isConfigError(err) {
			reason = "CreateContainerConfigError"
		}
		w.hold(pod, name, Condition{reason, text(err)}, text(err))
		return false, false
	}
	w.sayAt(pod, spec.Path(pod, name), corev1.EventTypeNormal, "Created", "Container created")
	w.born[id] = true
	w.forgetPulls(needs)
	if _, err := w.cri.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		w.hold(pod, name, Condition{"RunContainerError", message(err)}, message(err))
		return true, false // the runtime has changed: the container exists
	}
	w.sayAt(pod, spec.Path(pod, name), corev1.EventTypeNormal, "Started", "Container started")
	delete(w.waiting, name)
	w.retries.reset(name)
	w.postStart(ctx, pod, v, s.Container, id)
	return true, false
}

// text is what a status shows of an error that may come from the API.
func text(err error) string {
	var c spec.ConfigError
	if errors.As(err, &c) {
		return c.Error()
	}
	var s apierrors.APIStatus
	if errors.As(err, &s) {
		return s.Status().Message
	}
	return message(err)
}

// images makes the images of needs ready. It returns them, the container's first and by reference, or why they are not there; neither
// while they are being pulled.
func (w *worker) images(ctx context.Context, pod *corev1.Pod, needs []need) (*runtimeapi.Image, map[string]string, *Condition) {
	var image *runtimeapi.Image
	var held *Condition
	ids := map[string]string{}
	missing := false
	for i, n := range needs {
		got, why := w.image(ctx, pod, n)
		held = cmp.Or(held, why)
		if got == nil {
			missing = true
			continue
		}
		if ids[n.reference] = got.Id; i == 0 {
			image = got
		}
	}
	if missing {
		return nil, nil, held
	}
	// Only now: while one is missing, those that are there are looked for again and again.
	for _, n := range needs {
		if pulled, _, _ := w.jobs.state(n.key()); !pulled {
			w.sayAt(pod, n.path, corev1.EventTypeNormal, "Pulled", "Container image %q already present on machine", n.reference)
		}
	}
	return image, ids, nil
}

// pulling reports whether a pull for the container is under way.
func (w *worker) pulling(needs []need) bool {
	return slices.ContainsFunc(needs, func(n need) bool {
		exists, done, _ := w.jobs.state(n.key())
		return exists && !done
	})
}

func (w *worker) forgetPulls(needs []need) {
	for _, n := range needs {
		w.jobs.forget(n.key())
		delete(w.backedOff, n.key())
		w.pulls.reset(n.reference)
	}
}

// create makes the container in the ready sandbox.
func (w *worker) create(ctx context.Context, pod *corev1.Pod, v *View, s Start, image *runtimeapi.Image, images map[string]string) (string, error) {
	c := s.Container
	surroundings := spec.Surroundings{Objects: w.source(ctx, pod), Field: w.fields(pod, v),
		File: func(vol, path string) ([]byte, error) { return w.Volumes.ReadFile(pod, vol, path) }}
	var err error
	if surroundings.Services, err = w.services(ctx, pod); err != nil {
		return "", fmt.Errorf("list services: %w", err)
	}
	env, err := spec.Env(pod, c, surroundings)
	if err != nil {
		return "", err
	}
	sandbox := v.Ready()
	handler := sandbox.GetRuntimeHandler() // a RuntimeClass may have been made anew under its name
	mounts, err := w.Volumes.Mounts(volume.Request{Pod: pod, Container: c, Env: spec.EnvMap(env),
		Recursive: w.config.Handlers[handler].GetRecursiveReadOnlyMounts(), Relabel: w.config.SELinux,
		ImageRef: func(reference string) (string, bool) { id, ok := images[reference]; return id, ok }})
	if err != nil {
		return "", err
	}
	if mounts, err = w.ownMounts(pod, s, v, mounts); err != nil {
		return "", err
	}
	devices, err := w.Volumes.Devices(pod, c)
	if err != nil {
		return "", err
	}
	additions, err := w.Devices.Additions(pod, c)
	if err == nil {
		additions, err = w.withClaims(pod, c, additions)
	}
	if err != nil {
		return "", err
	}
	users, err := w.users(pod, handler)
	if err != nil {
		return "", err
	}
	parts := spec.Parts{Users: users, Kind: s.Kind, Attempt: s.Attempt, Image: image, ImageRef: image.Id, Env: env, Mounts: mounts, Devices: devices, Additions: additions}
	if s.Kind == spec.Ephemeral {
		parts.TargetID = w.target(pod, c.Name, v)
	}
	grouped := w.withGroups(pod)
	config, err := spec.Container(grouped, c, parts, w.config.Node)
	if err != nil {
		return "", err
	}
	dns, _ := spec.PodDNS(pod, w.DNS())
	sandboxConfig, err := spec.Sandbox(grouped, sandbox.GetMetadata().GetAttempt(), dns, users, w.config.Node)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(w.logDirectory(pod), c.Name), 0o755); err != nil {
		return "", fmt.Errorf("make log folder: %w", err)
	}
	got, err := w.cri.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandbox.Id, Config: config, SandboxConfig: sandboxConfig})
	if err != nil {
		return "", err
	}
	return got.ContainerId, nil
}

// target returns the container whose processes an ephemeral container shares.
func (w *worker) target(pod *corev1.Pod, name string, v *View) string {
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		if e.Name == name && e.TargetContainerName != "" {
			if c := v.Latest(e.TargetContainerName); c.Running() {
				return c.Id
			}
		}
	}
	return ""
}

// ownMounts adds the hosts file and the termination message file.
func (w *worker) ownMounts(pod *corev1.Pod, s Start, v *View, mounts []*runtimeapi.Mount) ([]*runtimeapi.Mount, error) {
	hosts, err := w.writeHosts(pod, s.Container, v)
	if err != nil {
		return nil, err
	}
	if hosts != nil {
		mounts = append(mounts, hosts)
	}
	path := w.messageFile(pod, s.Container.Name, s.Attempt)
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make folder of termination message: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
	if err != nil {
		return nil, fmt.Errorf("make termination message file: %w", err)
	}
	err = errors.Join(f.Chmod(0o666), f.Close()) // whoever the container runs as may write it
	if err != nil {
		return nil, fmt.Errorf("make termination message file: %w", err)
	}
	at := s.Container.TerminationMessagePath
	if at == "" {
		at = spec.DefaultTerminationMessage
	}
	return append(mounts, &runtimeapi.Mount{ContainerPath: at, HostPath: path, SelinuxRelabel: w.config.SELinux}), nil
}

func (w *worker) messageFile(pod *corev1.Pod, container string, attempt uint32) string {
	return filepath.Join(w.Volumes.PodDir(pod.UID), "containers", container, strconv.Itoa(int(attempt)))
}

// services returns those whose addresses the pod's environment may show.
func (w *worker) services(ctx context.Context, pod *corev1.Pod) ([]*corev1.Service, error) {
	var out []*corev1.Service
	if pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks {
		own, err := client.List[*corev1.Service](ctx, w.Client, client.Query{Namespace: pod.Namespace})
		if err != nil {
			return nil, err
		}
		out = own
	}
	master, err := client.Get[*corev1.Service](ctx, w.Client, api.Key{Namespace: corev1.NamespaceDefault, Name: "kubernetes"})
	if err == nil {
		return append(out, master), nil
	}
	if apierrors.IsNotFound(err) {
		return out, nil
	}
	return nil, err
}

// postStart runs the container's hook beside the worker.
func (w *worker) postStart(ctx context.Context, pod *corev1.Pod, v *View, c *corev1.Container, id string) {
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return
	}
	ip := ""
	if ips := v.IPs(); len(ips) > 0 {
		ip = ips[0]
	}
	if pod.Spec.HostNetwork && len(w.HostIPs()) > 0 {
		ip = w.HostIPs()[0]
	}
	w.jobs.do(ctx, "postStart "+id, func(ctx context.Context) error { return w.hook(ctx, c.Lifecycle.PostStart, c, id, ip) })
}

// readHooks takes note of postStart hooks that have ended.
func (w *worker) readHooks(pod *corev1.Pod, v *View) {
	for name, runs := range v.Containers {
		for _, run := range runs {
			key := "postStart " + run.Id
			if exists, done, err := w.jobs.state(key); exists && done && err != nil && w.hooks[run.Id] == "" {
				w.hooks[run.Id] = err.Error()
				w.sayAt(pod, spec.Path(pod, name), corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed for container %s: %v", name, err)
			}
			if run.Exited() {
				w.jobs.forget(key)
			}
		}
	}
}

// stopAll stops running containers beside the worker.
func (w *worker) stopAll(ctx context.Context, pod *corev1.Pod, v *View, stops []Stop) {
	for _, s := range stops {
		c, _ := spec.Find(pod, s.Container.Metadata.Name)
		grace := time.Duration(spec.Grace(pod)) * time.Second
		if c != nil {
			if g := probeGrace(c, s.Probe); g != nil {
				grace = time.Duration(*g) * time.Second
			}
		}
		key := "stop " + s.Container.Id
		exists, done, err := w.jobs.state(key)
		switch {
		case !exists:
			w.sayAt(pod, spec.Path(pod, s.Container.Metadata.Name), corev1.EventTypeNormal, "Killing", "%s", s.Message)
			w.jobs.do(ctx, key, func(ctx context.Context) error { return w.stop(ctx, s.Container, c, first(v.IPs()), grace) })
		case done:
			w.jobs.forget(key)
			if err != nil {
				w.log.Warn("container did not stop", "container", s.Container.Metadata.Name, "err", err)
			}
			w.at(w.now().Add(time.Second))
		}
	}
}

// probeGrace returns the grace period of the probe that gave up, if it has its own.
func probeGrace(c *corev1.Container, probe string) *int64 {
	switch {
	case probe == "liveness" && c.LivenessProbe != nil:
		return c.LivenessProbe.TerminationGracePeriodSeconds
	case probe == "startup" && c.StartupProbe != nil:
		return c.StartupProbe.TerminationGracePeriodSeconds
	}
	return nil
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}
