package spec

import (
	"fmt"
	"hash/fnv"
	"maps"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Labels by which sandboxes and containers are found again.
const (
	PodNameLabel       = "io.kubernetes.pod.name"
	PodNamespaceLabel  = "io.kubernetes.pod.namespace"
	PodUIDLabel        = "io.kubernetes.pod.uid"
	ContainerNameLabel = "io.kubernetes.container.name"
)

// Annotations of containers.
const (
	HashAnnotation                  = "io.kubernetes.container.hash"
	RestartCountAnnotation          = "io.kubernetes.container.restartCount"
	MessagePathAnnotation           = "io.kubernetes.container.terminationMessagePath"
	MessagePolicyAnnotation         = "io.kubernetes.container.terminationMessagePolicy"
	GraceAnnotation                 = "io.kubernetes.pod.terminationGracePeriod"
	ContainerKindAnnotation         = "io.kubernetes.container.kind" // init, ephemeral or empty
	ConfigSourceAnnotation          = "kubernetes.io/config.source"
	ConfigMirrorAnnotation          = "kubernetes.io/config.mirror"
	ConfigHashAnnotation            = "kubernetes.io/config.hash"
	DefaultTerminationMessage       = "/dev/termination-log"
	hashVersion                     = "v1:"
	defaultGraceSeconds       int64 = 30
)

// Hash identifies what of a container's spec makes a new container necessary when it changes. It carries a version, so
// that a later kubelet that hashes otherwise leaves containers alone that it did not make.
func Hash(c *corev1.Container) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%q%q", c.Name, c.Image)
	return hashVersion + strconv.FormatUint(h.Sum64(), 16)
}

// SameHash reports whether a container that carries the hash was made from c, or cannot be told.
func SameHash(hash string, c *corev1.Container) bool {
	if len(hash) < len(hashVersion) || hash[:len(hashVersion)] != hashVersion {
		return true
	}
	return hash == Hash(c)
}

// Grace returns how many seconds the pod's containers get to end.
func Grace(pod *corev1.Pod) int64 {
	switch {
	case pod.DeletionGracePeriodSeconds != nil:
		return *pod.DeletionGracePeriodSeconds
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		return *pod.Spec.TerminationGracePeriodSeconds
	}
	return defaultGraceSeconds
}

func podLabels(pod *corev1.Pod) map[string]string {
	l := maps.Clone(pod.Labels)
	if l == nil {
		l = map[string]string{}
	}
	l[PodNameLabel], l[PodNamespaceLabel], l[PodUIDLabel] = pod.Name, pod.Namespace, string(pod.UID)
	return l
}

// LogDirectory is the folder of the pod's logs below root (/var/log/pods).
func LogDirectory(root string, pod *corev1.Pod) string {
	return filepath.Join(root, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// LogDirectoryUID tells whose logs a folder of LogDirectory's form holds; ok is false for any other name.
func LogDirectoryUID(name string) (uid types.UID, ok bool) {
	parts := strings.Split(name, "_") // in none of the three parts
	if len(parts) != 3 || parts[2] == "" {
		return "", false
	}
	return types.UID(parts[2]), true
}

// LogPath is the path of one attempt's log, relative to LogDirectory.
func LogPath(container string, attempt uint32) string {
	return filepath.Join(container, strconv.FormatUint(uint64(attempt), 10)+".log")
}

// Hostname returns the pod's host name and its domain ("" where it has none). The name is cut to what the kernel takes.
func Hostname(pod *corev1.Pod, clusterDomain string) (name, domain string) {
	if o := pod.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, ""
	}
	name = pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	if len(name) > 63 {
		name = name[:63]
		for len(name) > 0 && (name[len(name)-1] == '-' || name[len(name)-1] == '.') {
			name = name[:len(name)-1]
		}
	}
	if pod.Spec.Subdomain != "" {
		domain = pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + clusterDomain
	}
	return name, domain
}
