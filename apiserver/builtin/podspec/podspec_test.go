package podspec_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
)

// What is wrong with which spec is in ../testdata/pod.yaml, which goes through the whole pipeline.

func TestPullPolicy(t *testing.T) {
	t.Parallel()
	digest := "@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for image, want := range map[string]corev1.PullPolicy{
		"nginx":                       corev1.PullAlways,
		"nginx:latest":                corev1.PullAlways,
		"nginx:1.29":                  corev1.PullIfNotPresent,
		"nginx" + digest:              corev1.PullIfNotPresent,
		"nginx:1.29" + digest:         corev1.PullIfNotPresent,
		"localhost:5000/nginx":        corev1.PullAlways,
		"localhost:5000/nginx:1":      corev1.PullIfNotPresent,
		"localhost:5000/a/b:latest":   corev1.PullAlways,
		"localhost:5000/b" + digest:   corev1.PullIfNotPresent,
		"registry.example.org/a/b:v1": corev1.PullIfNotPresent,
	} {
		s := &corev1.PodSpec{Containers: []corev1.Container{{Image: image}}}
		podspec.Default(s)
		if got := s.Containers[0].ImagePullPolicy; got != want {
			t.Errorf("%s: got %s, want %s", image, got, want)
		}
	}
}

func TestDefaultsKeepWhatIsSet(t *testing.T) {
	t.Parallel()
	const text = `
restartPolicy: Never
dnsPolicy: Default
schedulerName: mine
terminationGracePeriodSeconds: 0
enableServiceLinks: false
serviceAccount: old
securityContext: {runAsUser: 7}
volumes: [{name: a, secret: {secretName: s, defaultMode: 256}}, {name: b, hostPath: {path: /x, type: Socket}}]
containers:
- name: a
  image: img
  imagePullPolicy: Never
  terminationMessagePath: /x
  terminationMessagePolicy: FallbackToLogsOnError
  ports: [{containerPort: 53, protocol: UDP}]
  livenessProbe: {httpGet: {path: /x, port: 1, scheme: HTTPS}, timeoutSeconds: 2, periodSeconds: 3, successThreshold: 1, failureThreshold: 5}
  resources: {limits: {cpu: "1"}, requests: {cpu: 500m}}
`
	var want, got corev1.PodSpec
	if err := yaml.UnmarshalStrict([]byte(text), &want); err != nil {
		t.Fatal(err)
	}
	got = *want.DeepCopy()
	podspec.DefaultPod(&got)
	want.ServiceAccountName = "old" // the other name of the field
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if string(a) != string(b) {
		t.Errorf("changed:\n%s\n%s", a, b)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	s := &corev1.PodSpec{ImagePullSecrets: []corev1.LocalObjectReference{{}}, Containers: []corev1.Container{{
		Env:   []corev1.EnvVar{{Name: "A"}, {Name: "A"}},
		Ports: []corev1.ContainerPort{{ContainerPort: 80, Protocol: "TCP"}, {ContainerPort: 80, Protocol: "UDP"}, {ContainerPort: 80, Protocol: "TCP"}},
	}}}
	got := podspec.Warnings(s, field.NewPath("spec"))
	want := []string{
		`spec.imagePullSecrets[0].name: invalid empty name ""`,
		`spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply`,
		`spec.containers[0].ports[2]: duplicate port definition with spec.containers[0].ports[0]`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
}

// FuzzSpec gives validation anything that decodes: it must answer, defaulting must be idempotent, and a spec that is
// right must be its own right update.
func FuzzSpec(f *testing.F) {
	f.Add(`{"containers":[{"name":"a","image":"i"}]}`)
	f.Add(`{"containers":[{"name":"a","image":"i","env":[{"name":"A","valueFrom":{"fieldRef":{"fieldPath":"metadata.labels['a']"}}}],"livenessProbe":{"grpc":{"port":1}}}],"volumes":[{"name":"v","projected":{"sources":[{}]}}]}`)
	f.Add(`{"resourceClaims":[{"name":"a","resourceClaimName":"b"},{"name":"a"}],"containers":[{"name":"a","resources":{"claims":[{"name":"a","request":"r"},{"name":"c"}]}}]}`)
	f.Add(`{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{}]}}},"tolerations":[{"operator":"Exists"}],"schedulingGates":[{"name":"a"}]}`)
	f.Add(`{"securityContext":{"sysctls":[{"name":"net/a.b"}]},"hostNetwork":true,"containers":[{"resources":{"limits":{"cpu":"1.0001"}}}]}`)
	f.Add(`{"resources":{"limits":{"cpu":"1","hugepages-2Mi":"2Mi"},"claims":[{}]},"containers":[{"resources":{"limits":{"cpu":"2"},"requests":{"memory":"1"}}}]}`)
	f.Fuzz(func(t *testing.T, data string) {
		var s corev1.PodSpec
		if json.Unmarshal([]byte(data), &s) != nil {
			return
		}
		podspec.DefaultPod(&s)
		again := s.DeepCopy()
		podspec.DefaultPod(again)
		a, err := json.Marshal(s)
		if err != nil {
			return // quantities that cannot be written
		}
		if b, _ := json.Marshal(again); string(a) != string(b) {
			t.Errorf("defaults are not idempotent:\n%s\n%s", a, b)
		}
		errs := podspec.Spec(&s, field.NewPath("spec"))
		for _, e := range errs {
			_ = e.Error()
		}
		if len(errs) > 0 {
			return
		}
		p := &corev1.Pod{Spec: s}
		if errs := podspec.Update(p.DeepCopy(), p); len(errs) > 0 {
			t.Errorf("an update to itself: %v in %s", errs, a)
		}
	})
}

func BenchmarkSpec(b *testing.B) {
	s := &corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "img:1", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}}
	podspec.DefaultPod(s)
	path := field.NewPath("spec")
	for b.Loop() {
		if errs := podspec.Spec(s, path); len(errs) > 0 {
			b.Fatal(errs)
		}
	}
}

// TestStatusAddresses takes a pod's addresses and its node's, of each family one.
func TestStatusAddresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		ips  []string
		want string
	}{
		{nil, ""},
		{[]string{"10.0.0.1"}, ""},
		{[]string{"10.0.0.1", "fd00::1"}, ""},
		{[]string{"fd00::1", "10.0.0.1"}, ""},
		{[]string{"10.0.0.1", "10.0.0.2"}, "may specify no more than one IP for each IP family"},
		{[]string{"fd00::1", "fd00::2"}, "may specify no more than one IP for each IP family"},
		{[]string{"fd00::1", "10.0.0.1", "10.0.0.2"}, "may specify no more than one IP for each IP family"},
		{[]string{"fd00::1", "fd00::1"}, "Duplicate value"},
		{[]string{"x"}, "must be a valid IP address"},
	} {
		pods, hosts := &corev1.Pod{}, &corev1.Pod{}
		for _, ip := range tt.ips {
			pods.Status.PodIPs = append(pods.Status.PodIPs, corev1.PodIP{IP: ip})
			hosts.Status.HostIPs = append(hosts.Status.HostIPs, corev1.HostIP{IP: ip})
		}
		for at, p := range map[string]*corev1.Pod{"status.podIPs": pods, "status.hostIPs": hosts} {
			errs := podspec.Status(p, &corev1.Pod{}).ToAggregate()
			if tt.want == "" && errs != nil || tt.want != "" && (errs == nil || !strings.Contains(errs.Error(), at) || !strings.Contains(errs.Error(), tt.want)) {
				t.Errorf("%s %v: %v, want %q", at, tt.ips, errs, tt.want)
			}
		}
	}
}
