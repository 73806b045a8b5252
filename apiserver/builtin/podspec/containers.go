package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
)

// maxRestartRules and maxRestartCodes bound a container's own restart rules.
const (
	maxRestartRules = 20
	maxRestartCodes = 255
)

func (v *check) allContainers(path *field.Path) (errs field.ErrorList) {
	v.known = sets.New[string]()
	s := v.spec
	if len(s.Containers) == 0 {
		errs = append(errs, field.Required(path.Child("containers"), ""))
	}
	for i := range s.Containers {
		at := path.Child("containers").Index(i)
		errs = append(errs, v.container(&s.Containers[i], at)...)
		errs = append(errs, v.lifecycle(&s.Containers[i], at)...)
		errs = append(errs, restarts(&s.Containers[i], at)...)
	}
	for i := range s.InitContainers {
		errs = append(errs, v.initContainer(&s.InitContainers[i], path.Child("initContainers").Index(i))...)
	}
	for i := range s.EphemeralContainers {
		errs = append(errs, v.ephemeral(&s.EphemeralContainers[i], path.Child("ephemeralContainers").Index(i))...)
	}
	return errs
}

// container checks what all sorts of containers have in common.
func (v *check) container(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	if c.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	} else {
		errs = append(errs, texts(path.Child("name"), c.Name, validation.IsDNS1123Label(c.Name))...)
		if v.known.Has(c.Name) {
			errs = append(errs, field.Duplicate(path.Child("name"), c.Name))
		}
	}
	v.known.Insert(c.Name)
	if c.Image == "" {
		errs = append(errs, field.Required(path.Child("image"), ""))
	} else if strings.TrimSpace(c.Image) != c.Image {
		errs = append(errs, field.Invalid(path.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	if c.TerminationMessagePolicy != "" {
		errs = append(errs, oneOf(path.Child("terminationMessagePolicy"), c.TerminationMessagePolicy,
			corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	}
	errs = append(errs, oneOf(path.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, ports(c.Ports, path.Child("ports"))...)
	errs = append(errs, v.env(c.Env, path.Child("env"))...)
	errs = append(errs, envFrom(c.EnvFrom, path.Child("envFrom"))...)
	errs = append(errs, v.mounts(c, path.Child("volumeMounts"))...)
	errs = append(errs, v.devices(c, path.Child("volumeDevices"))...)
	errs = append(errs, Requirements(&c.Resources, path.Child("resources"))...)
	errs = append(errs, v.usedClaims(c.Resources.Claims, path.Child("resources", "claims"))...)
	errs = append(errs, resizePolicies(c, v.spec.RestartPolicy, path.Child("resizePolicy"))...)
	errs = append(errs, v.containerSecurity(c.SecurityContext, path.Child("securityContext"))...)
	return errs
}

// initContainer checks one that runs to its end before the others, or, with restartPolicy Always, beside them.
func (v *check) initContainer(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	errs = append(errs, v.container(c, path)...)
	errs = append(errs, restarts(c, path)...)
	if api.Sidecar(c) {
		return append(errs, v.lifecycle(c, path)...)
	}
	forbid := func(set bool, name string) {
		if set {
			errs = append(errs, field.Forbidden(path.Child(name), "may not be set for init containers without restartPolicy=Always"))
		}
	}
	forbid(c.Lifecycle != nil, "lifecycle")
	forbid(c.LivenessProbe != nil, "livenessProbe")
	forbid(c.ReadinessProbe != nil, "readinessProbe")
	forbid(c.StartupProbe != nil, "startupProbe")
	for i, p := range c.ResizePolicy {
		if p.RestartPolicy == corev1.RestartContainer {
			errs = append(errs, field.Invalid(path.Child("resizePolicy").Index(i).Child("restartPolicy"), p.RestartPolicy, "must not be set to 'RestartContainer' for non-sidecar initContainers"))
		}
	}
	return errs
}

// ephemeral checks a container that is put into a running pod.
func (v *check) ephemeral(e *corev1.EphemeralContainer, path *field.Path) (errs field.ErrorList) {
	c := corev1.Container(e.EphemeralContainerCommon)
	target := e.TargetContainerName
	if target != "" && !hasContainer(v.spec, target) {
		errs = append(errs, field.NotFound(path.Child("targetContainerName"), target))
	}
	errs = append(errs, v.container(&c, path)...)
	forbid := func(set bool, name string) {
		if set {
			errs = append(errs, field.Forbidden(path.Child(name), "cannot be set for an Ephemeral Container"))
		}
	}
	forbid(len(c.Ports) > 0, "ports")
	forbid(c.Lifecycle != nil, "lifecycle")
	forbid(c.LivenessProbe != nil, "livenessProbe")
	forbid(c.ReadinessProbe != nil, "readinessProbe")
	forbid(c.StartupProbe != nil, "startupProbe")
	forbid(len(c.Resources.Limits)+len(c.Resources.Requests)+len(c.Resources.Claims) > 0, "resources")
	forbid(len(c.ResizePolicy) > 0, "resizePolicy")
	forbid(c.RestartPolicy != nil, "restartPolicy")
	forbid(len(c.RestartPolicyRules) > 0, "restartPolicyRules")
	for i, m := range c.VolumeMounts {
		if m.SubPath != "" {
			errs = append(errs, field.Forbidden(path.Child("volumeMounts").Index(i).Child("subPath"), "cannot be set for an Ephemeral Container"))
		}
		if m.SubPathExpr != "" {
			errs = append(errs, field.Forbidden(path.Child("volumeMounts").Index(i).Child("subPathExpr"), "cannot be set for an Ephemeral Container"))
		}
	}
	return errs
}

func hasContainer(s *corev1.PodSpec, name string) (found bool) {
	for _, cs := range [][]corev1.Container{s.Containers, s.InitContainers} {
		for i := range cs {
			found = found || cs[i].Name == name
		}
	}
	return found
}

// restarts checks a container's own restart policy and rules.
func restarts(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	p := c.RestartPolicy
	rules := path.Child("restartPolicyRules")
	if p != nil {
		errs = known(path.Child("restartPolicy"), *p, corev1.ContainerRestartPolicyAlways,
			corev1.ContainerRestartPolicyOnFailure, corev1.ContainerRestartPolicyNever)
	} else if len(c.RestartPolicyRules) > 0 {
		errs = append(errs, field.Required(path.Child("restartPolicy"), "must specify restartPolicy when restart rules are used"))
	}
	if len(c.RestartPolicyRules) > maxRestartRules {
		errs = append(errs, field.TooMany(rules, len(c.RestartPolicyRules), maxRestartRules))
	}
	for i, r := range c.RestartPolicyRules {
		at := rules.Index(i)
		if r.Action == corev1.ContainerRestartRuleActionRestartAllContainers {
			errs = append(errs, field.Forbidden(at.Child("action"), string(r.Action)+" is "+notHere))
		} else {
			errs = append(errs, known(at.Child("action"), r.Action, corev1.ContainerRestartRuleActionRestart)...)
		}
		if r.ExitCodes == nil {
			errs = append(errs, field.Required(at.Child("exitCodes"), "must be specified"))
			continue
		}
		at = at.Child("exitCodes")
		errs = append(errs, known(at.Child("operator"), r.ExitCodes.Operator,
			corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)...)
		if n := len(r.ExitCodes.Values); n > maxRestartCodes {
			errs = append(errs, field.TooMany(at.Child("values"), n, maxRestartCodes))
		}
	}
	return errs
}

func ports(ps []corev1.ContainerPort, path *field.Path) (errs field.ErrorList) {
	seen := sets.New[string]()
	for i, p := range ps {
		at := path.Index(i)
		if p.Name != "" {
			if messages := validation.IsValidPortName(p.Name); len(messages) > 0 {
				errs = append(errs, texts(at.Child("name"), p.Name, messages)...)
			} else if seen.Has(p.Name) {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
			seen.Insert(p.Name)
		}
		if p.ContainerPort == 0 {
			errs = append(errs, field.Required(at.Child("containerPort"), ""))
		} else {
			errs = append(errs, texts(at.Child("containerPort"), p.ContainerPort, validation.IsValidPortNum(int(p.ContainerPort)))...)
		}
		if p.HostPort != 0 {
			errs = append(errs, texts(at.Child("hostPort"), p.HostPort, validation.IsValidPortNum(int(p.HostPort)))...)
		}
		errs = append(errs, oneOf(at.Child("protocol"), p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
	}
	return errs
}

// hostPorts checks what ports of different containers have to do with each other and with the host's network.
func hostPorts(s *corev1.PodSpec, path *field.Path) (errs field.ErrorList) {
	used := sets.New[string]()
	containers := func(cs []corev1.Container, path *field.Path, conflicts bool) {
		for i := range cs {
			for j, p := range cs[i].Ports {
				at := path.Index(i).Child("ports").Index(j)
				if conflicts && s.HostNetwork && p.HostPort != p.ContainerPort && p.HostPort != 0 {
					errs = append(errs, field.Invalid(at.Child("hostPort"), p.HostPort, "must match `containerPort` when `hostNetwork` is true"))
				}
				if p.HostPort == 0 || !conflicts {
					continue
				}
				key := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
				if used.Has(key) {
					errs = append(errs, field.Duplicate(at.Child("hostPort"), key))
				}
				used.Insert(key)
			}
		}
	}
	containers(s.Containers, path.Child("containers"), true)
	containers(s.InitContainers, path.Child("initContainers"), false)
	return errs
}
