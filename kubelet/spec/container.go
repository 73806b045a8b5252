package spec

import (
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/resources"
)

// Parts is what a container is made of, besides its spec.
type Parts struct {
	Kind    Kind
	Attempt uint32 // how often it was restarted
	Image   *runtimeapi.Image
	// ImageRef is what PullImage or ImageStatus answered: the image's ID.
	ImageRef string
	Env      []*runtimeapi.KeyValue
	Mounts   []*runtimeapi.Mount
	Devices  []*runtimeapi.Device
	// Additions come with devices that plugins gave the container; nil for none.
	Additions *Additions
	// TargetID is the container whose PID namespace an ephemeral container enters, or empty.
	TargetID string
	// Users is the user namespace of a pod that has one of its own.
	Users *runtimeapi.UserNamespace
}

// Container returns the CRI configuration of one container.
func Container(pod *corev1.Pod, c *corev1.Container, parts Parts, n Node) (*runtimeapi.ContainerConfig, error) {
	if err := VerifyNonRoot(pod, c, parts.Image); err != nil {
		return nil, err
	}
	sc, err := containerSecurity(pod, c, parts.Image, parts.Users, n)
	if err != nil {
		return nil, err
	}
	if parts.TargetID != "" {
		sc.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		sc.NamespaceOptions.TargetId = parts.TargetID
	}
	for _, m := range parts.Mounts { // what is in volumes has the owners that the container sees
		m.UidMappings, m.GidMappings = parts.Users.GetUids(), parts.Users.GetGids()
	}
	env := parts.Additions.env(parts.Env)
	values := make(map[string]string, len(env))
	for _, kv := range env {
		values[kv.Key] = string(kv.Value)
	}
	lookup := func(name string) (string, bool) { v, ok := values[name]; return v, ok }
	path := c.TerminationMessagePath
	if path == "" {
		path = DefaultTerminationMessage
	}
	annotations := map[string]string{
		HashAnnotation:          Hash(c),
		RestartCountAnnotation:  strconv.FormatUint(uint64(parts.Attempt), 10),
		MessagePathAnnotation:   path,
		MessagePolicyAnnotation: string(c.TerminationMessagePolicy),
		GraceAnnotation:         strconv.FormatInt(Grace(pod), 10),
		ContainerKindAnnotation: parts.Kind.String(),
	}
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: parts.Attempt},
		Image:    &runtimeapi.ImageSpec{Image: parts.ImageRef, UserSpecifiedImage: c.Image, ImageRef: parts.ImageRef},
		Command:  expandAll(c.Command, lookup),
		Args:     expandAll(c.Args, lookup),

		WorkingDir:  c.WorkingDir,
		Envs:        env,
		Mounts:      parts.Mounts,
		Devices:     parts.Devices,
		Labels:      containerLabels(pod, c),
		Annotations: annotations,
		LogPath:     LogPath(c.Name, parts.Attempt),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		Linux:       &runtimeapi.LinuxContainerConfig{Resources: resources.Container(pod, c, n.Host), SecurityContext: sc},
		StopSignal:  stopSignal(c),
	}
	parts.Additions.add(config)
	return config, nil
}

func containerLabels(pod *corev1.Pod, c *corev1.Container) map[string]string {
	return map[string]string{
		PodNameLabel: pod.Name, PodNamespaceLabel: pod.Namespace, PodUIDLabel: string(pod.UID), ContainerNameLabel: c.Name,
	}
}

func stopSignal(c *corev1.Container) runtimeapi.Signal {
	if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
		return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
	}
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+signalName(string(*c.Lifecycle.StopSignal))])
}

// signalName maps the API's SIGRTMIN+1 to the CRI's SIGRTMINPLUS1.
func signalName(s string) string {
	for i := range s {
		switch s[i] {
		case '+':
			return s[:i] + "PLUS" + s[i+1:]
		case '-':
			return s[:i] + "MINUS" + s[i+1:]
		}
	}
	return s
}

// EnvMap returns variables as a map.
func EnvMap(env []*runtimeapi.KeyValue) map[string]string {
	m := make(map[string]string, len(env))
	for _, kv := range env {
		m[kv.Key] = string(kv.Value)
	}
	return maps.Clone(m)
}
