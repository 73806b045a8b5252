package spec

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/field"
)

// Objects looks up what environments and volumes refer to, in the pod's namespace. Errors are API errors.
type Objects interface {
	ConfigMap(name string) (*corev1.ConfigMap, error)
	Secret(name string) (*corev1.Secret, error)
}

// Surroundings is what a pod's environment takes from elsewhere.
type Surroundings struct {
	Objects  Objects
	Services []*corev1.Service // of the pod's namespace, and default/kubernetes
	Field    field.Runtime
	// File returns a file of an emptyDir volume of the pod, for fileKeyRef; fs.ErrNotExist where there is none.
	File func(volume, path string) ([]byte, error)
}

// ConfigError is a mistake in the pod or in what it names; it goes into the container's status as
// CreateContainerConfigError.
type ConfigError struct{ Err error }

func (e ConfigError) Error() string { return e.Err.Error() }
func (e ConfigError) Unwrap() error { return e.Err }

func configErrorf(format string, args ...any) error { return ConfigError{fmt.Errorf(format, args...)} }

// environment collects variables in order: the last value of a name counts, at the first one's place.
type environment struct {
	names  []string
	values map[string]string
}

func (e *environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) list() []*runtimeapi.KeyValue {
	var out []*runtimeapi.KeyValue
	for _, n := range e.names {
		out = append(out, &runtimeapi.KeyValue{Key: n, Value: []byte(e.values[n])})
	}
	return out
}

// Env returns the container's environment: services first, then envFrom, then env, each overriding those before. $(VAR)
// in env refers to what was set before it and to services.
func Env(pod *corev1.Pod, c *corev1.Container, s Surroundings) ([]*runtimeapi.KeyValue, error) {
	services := serviceEnv(pod, s.Services)
	e := &environment{values: map[string]string{}}
	for _, from := range c.EnvFrom {
		if err := envFrom(e, from, s.Objects); err != nil {
			return nil, err
		}
	}
	lookup := func(name string) (string, bool) {
		if v, ok := e.values[name]; ok {
			return v, true
		}
		v, ok := services.values[name]
		return v, ok
	}
	for i := range c.Env {
		v := &c.Env[i]
		if v.ValueFrom == nil {
			e.set(v.Name, Expand(v.Value, lookup))
			continue
		}
		value, ok, err := valueFrom(pod, c, v.ValueFrom, s)
		if err != nil {
			return nil, err
		}
		if ok {
			e.set(v.Name, value)
		}
	}
	for _, n := range services.names {
		if _, ok := e.values[n]; !ok {
			e.set(n, services.values[n])
		}
	}
	return e.list(), nil
}

func envFrom(e *environment, from corev1.EnvFromSource, objects Objects) error {
	var data map[string]string
	switch {
	case from.ConfigMapRef != nil:
		cm, err := objects.ConfigMap(from.ConfigMapRef.Name)
		if err != nil {
			return missing(err, from.ConfigMapRef.Optional)
		}
		data = cm.Data
	case from.SecretRef != nil:
		secret, err := objects.Secret(from.SecretRef.Name)
		if err != nil {
			return missing(err, from.SecretRef.Optional)
		}
		data = make(map[string]string, len(secret.Data))
		for k, v := range secret.Data {
			data[k] = string(v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(data)) {
		name := from.Prefix + k
		if len(validation.IsRelaxedEnvVarName(name)) == 0 {
			e.set(name, data[k])
		}
	}
	return nil
}

// missing turns an optional object's absence into nothing.
func missing(err error, optional *bool) error {
	if apierrors.IsNotFound(err) {
		if optional != nil && *optional {
			return nil
		}
		return ConfigError{err}
	}
	return err
}

func valueFrom(pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource, s Surroundings) (string, bool, error) {
	switch {
	case from.FieldRef != nil:
		v, err := field.Value(pod, from.FieldRef.FieldPath, s.Field)
		return v, true, wrapConfig(err)
	case from.ResourceFieldRef != nil:
		v, err := field.Resource(pod, c.Name, from.ResourceFieldRef, s.Field)
		return v, true, wrapConfig(err)
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := s.Objects.ConfigMap(ref.Name)
		if err != nil {
			return "", false, missing(err, ref.Optional)
		}
		v, ok := cm.Data[ref.Key]
		if !ok {
			b, has := cm.BinaryData[ref.Key]
			v, ok = string(b), has
		}
		return v, ok, missingKey(ok, ref.Optional, ref.Key, "ConfigMap", pod.Namespace+"/"+ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		secret, err := s.Objects.Secret(ref.Name)
		if err != nil {
			return "", false, missing(err, ref.Optional)
		}
		v, ok := secret.Data[ref.Key]
		return string(v), ok, missingKey(ok, ref.Optional, ref.Key, "Secret", pod.Namespace+"/"+ref.Name)
	case from.FileKeyRef != nil:
		return fileKey(from.FileKeyRef, s)
	}
	return "", false, nil
}

func missingKey(ok bool, optional *bool, key, kind, name string) error {
	if ok || optional != nil && *optional {
		return nil
	}
	return configErrorf("couldn't find key %s in %s %s", key, kind, name)
}

func wrapConfig(err error) error {
	if err == nil {
		return nil
	}
	return ConfigError{err}
}

func fileKey(ref *corev1.FileKeySelector, s Surroundings) (string, bool, error) {
	optional := ref.Optional != nil && *ref.Optional
	if s.File == nil {
		return "", false, configErrorf("volume %s: files cannot be read here", ref.VolumeName)
	}
	b, err := s.File(ref.VolumeName, ref.Path)
	if err != nil {
		if optional {
			return "", false, nil
		}
		return "", false, configErrorf("environment file %s of volume %s: %w", ref.Path, ref.VolumeName, err)
	}
	vars, err := parseEnvFile(string(b))
	if err != nil {
		return "", false, configErrorf("environment file %s of volume %s: %w", ref.Path, ref.VolumeName, err)
	}
	v, ok := vars[ref.Key]
	return v, ok, missingKey(ok, ref.Optional, ref.Key, "file", ref.VolumeName+"/"+ref.Path)
}

var errEnvFile = errors.New("want lines NAME='value'")

// parseEnvFile reads the format of fileKeyRef: NAME='value', values may span lines; empty lines and # comments are
// skipped.
func parseEnvFile(text string) (map[string]string, error) {
	vars := map[string]string{}
	for line := 1; text != ""; line++ {
		row, rest, _ := strings.Cut(text, "\n")
		if t := strings.TrimSpace(row); t == "" || strings.HasPrefix(t, "#") {
			text = rest
			continue
		}
		name, value, ok := strings.Cut(text, "='")
		name = strings.TrimLeft(name, " \t")
		if !ok || len(validation.IsEnvVarName(name)) > 0 {
			return nil, fmt.Errorf("line %d: %w", line, errEnvFile)
		}
		value, rest, ok = strings.Cut(value, "'")
		tail, rest, _ := strings.Cut(rest, "\n")
		tail = strings.TrimSpace(tail)
		if !ok || tail != "" && !strings.HasPrefix(tail, "#") {
			return nil, fmt.Errorf("line %d: %w", line, errEnvFile)
		}
		line += strings.Count(value, "\n")
		vars[name], text = value, rest
	}
	return vars, nil
}

// serviceEnv returns the variables of service links: those of the pod's namespace unless the pod declines, and always
// the API's own address.
func serviceEnv(pod *corev1.Pod, services []*corev1.Service) *environment {
	e := &environment{values: map[string]string{}}
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	chosen := map[string]*corev1.Service{}
	for _, s := range services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		master := s.Namespace == corev1.NamespaceDefault && s.Name == "kubernetes"
		switch {
		case links && s.Namespace == pod.Namespace:
			chosen[s.Name] = s // a service of the own namespace wins over the API's
		case master && chosen[s.Name] == nil:
			chosen[s.Name] = s
		}
	}
	for _, name := range slices.Sorted(maps.Keys(chosen)) {
		addService(e, chosen[name])
	}
	return e
}

func addService(e *environment, s *corev1.Service) {
	prefix := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	ip := s.Spec.ClusterIP
	first := s.Spec.Ports[0]
	e.set(prefix+"_SERVICE_HOST", ip)
	e.set(prefix+"_SERVICE_PORT", strconv.Itoa(int(first.Port)))
	for _, p := range s.Spec.Ports {
		if p.Name != "" {
			e.set(prefix+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_")), strconv.Itoa(int(p.Port)))
		}
	}
	for i, p := range s.Spec.Ports {
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = string(corev1.ProtocolTCP)
		}
		port := strconv.Itoa(int(p.Port))
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			e.set(prefix+"_PORT", url)
		}
		one := prefix + "_PORT_" + port + "_" + strings.ToUpper(protocol)
		e.set(one, url)
		e.set(one+"_PROTO", strings.ToLower(protocol))
		e.set(one+"_PORT", port)
		e.set(one+"_ADDR", ip)
	}
}
