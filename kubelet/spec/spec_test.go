package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/field"
)

func ptr[T any](v T) *T { return &v }

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "E": ""}
	lookup := func(n string) (string, bool) { v, ok := vars[n]; return v, ok }
	for in, want := range map[string]string{
		"": "", "x": "x", "$(A)": "1", "a$(A)b$(A)": "a1b1", "$$(A)": "$(A)", "$$$(A)": "$1", "$(NONE)": "$(NONE)", "$(E)|": "|",
		"$(B)": "$(A)", "$": "$", "$$": "$", "$A": "$A", "$(A": "$(A", "$(": "$(", "a$": "a$", "$()": "$()", "$(A)$": "1$",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("a$(A)$$b$(")
	f.Fuzz(func(t *testing.T, s string) {
		none := func(string) (string, bool) { return "", false }
		if !strings.Contains(s, "$$") && Expand(s, none) != s {
			t.Errorf("%q was changed without any variable", s)
		}
	})
}

type objects struct {
	maps    map[string]*corev1.ConfigMap
	secrets map[string]*corev1.Secret
}

func (o objects) ConfigMap(name string) (*corev1.ConfigMap, error) {
	if c := o.maps[name]; c != nil {
		return c, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (o objects) Secret(name string) (*corev1.Secret, error) {
	if s := o.secrets[name]; s != nil {
		return s, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func surroundings() Surroundings {
	service := func(ns, name, ip string, ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
	}
	return Surroundings{
		Objects: objects{
			maps:    map[string]*corev1.ConfigMap{"cm": {Data: map[string]string{"k": "v", "bad key!": "x", "BASE": "cm"}, BinaryData: map[string][]byte{"bin": {65}}}},
			secrets: map[string]*corev1.Secret{"s": {Data: map[string][]byte{"pw": []byte("$(BASE)"), "BASE": []byte("secret")}}},
		},
		Services: []*corev1.Service{
			service("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Name: "https", Port: 443}),
			service("ns", "my-db", "10.96.0.5", corev1.ServicePort{Name: "sql", Port: 5432, Protocol: corev1.ProtocolTCP}),
			service("ns", "headless", "None", corev1.ServicePort{Port: 1}),
		},
		Field: field.Runtime{HostIPs: []string{"192.168.0.1"}, PodIPs: []string{"10.1.0.3", "fd00::3"}, NodeName: "n1",
			Allocatable: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourceCPU: resource.MustParse("4")}},
		File: func(volume, path string) ([]byte, error) {
			if volume == "v" && path == "f.env" {
				return []byte("# comment\nONE='1'\nTWO='two\nlines'\n"), nil
			}
			return nil, fs.ErrNotExist
		},
	}
}

func pod() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u1", Labels: map[string]string{"app": "x"}, Annotations: map[string]string{"b": "2", "a": "1"}},
		Spec: corev1.PodSpec{ServiceAccountName: "sa", DNSPolicy: corev1.DNSClusterFirst, EnableServiceLinks: ptr(false)}}
}

func TestEnv(t *testing.T) {
	env := func(vars ...corev1.EnvVar) *corev1.Container { return &corev1.Container{Name: "c", Env: vars} }
	fieldRef := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	res := func(name, what, divisor string) corev1.EnvVar {
		ref := &corev1.ResourceFieldSelector{Resource: what}
		if divisor != "" {
			ref.Divisor = resource.MustParse(divisor)
		}
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: ref}}
	}
	key := func(name, cm, k string, optional bool) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: cm}, Key: k, Optional: &optional}}}
	}
	file := func(name, path, k string, optional bool) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{VolumeName: "v", Path: path, Key: k, Optional: &optional}}}
	}
	const master = "KUBERNETES_SERVICE_HOST=10.96.0.1 KUBERNETES_SERVICE_PORT=443 KUBERNETES_SERVICE_PORT_HTTPS=443 KUBERNETES_PORT=tcp://10.96.0.1:443 " +
		"KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443 KUBERNETES_PORT_443_TCP_PROTO=tcp KUBERNETES_PORT_443_TCP_PORT=443 KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1"
	for _, c := range []struct {
		name      string
		container *corev1.Container
		change    func(*corev1.Pod)
		want      string
		bad       string
	}{
		{name: "order and expansion", container: env(corev1.EnvVar{Name: "A", Value: "1"}, corev1.EnvVar{Name: "B", Value: "$(A)$(LATER)$$(A)"}, corev1.EnvVar{Name: "LATER", Value: "x"}, corev1.EnvVar{Name: "A", Value: "2$(A)"}),
			want: "A=21 B=1$(LATER)$(A) LATER=x " + master},
		{name: "a service's variables can be used and overridden", container: env(corev1.EnvVar{Name: "URL", Value: "$(KUBERNETES_SERVICE_HOST)"}, corev1.EnvVar{Name: "KUBERNETES_SERVICE_PORT", Value: "1"}),
			want: "URL=10.96.0.1 KUBERNETES_SERVICE_PORT=1 " + strings.Replace(master, " KUBERNETES_SERVICE_PORT=443", "", 1)},
		{name: "service links", container: env(), change: func(p *corev1.Pod) { p.Spec.EnableServiceLinks = nil },
			want: master + " MY_DB_SERVICE_HOST=10.96.0.5 MY_DB_SERVICE_PORT=5432 MY_DB_SERVICE_PORT_SQL=5432 MY_DB_PORT=tcp://10.96.0.5:5432 " +
				"MY_DB_PORT_5432_TCP=tcp://10.96.0.5:5432 MY_DB_PORT_5432_TCP_PROTO=tcp MY_DB_PORT_5432_TCP_PORT=5432 MY_DB_PORT_5432_TCP_ADDR=10.96.0.5"},
		{name: "fields", container: env(fieldRef("N", "metadata.name"), fieldRef("IP", "status.podIP"), fieldRef("IPS", "status.podIPs"), fieldRef("H", "status.hostIP"), fieldRef("SA", "spec.serviceAccountName"), fieldRef("L", "metadata.labels['app']"), fieldRef("NO", "spec.nodeName")),
			want: "N=web IP=10.1.0.3 IPS=10.1.0.3,fd00::3 H=192.168.0.1 SA=sa L=x NO=n1 " + master},
		{name: "unknown field", container: env(fieldRef("N", "spec.nothing")), bad: "not supported"},
		{name: "no such variable of a map", container: env(key("X", "none", "k", true), key("Y", "cm", "none", true)), want: master},
		{name: "missing map", container: env(key("X", "none", "k", false)), bad: `configmaps "none" not found`},
		{name: "missing key", container: env(key("X", "cm", "none", false)), bad: "couldn't find key none in ConfigMap ns/cm"},
		{name: "values are not expanded", container: &corev1.Container{Name: "c", EnvFrom: []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}},
			{Prefix: "P_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}},
			Env: []corev1.EnvVar{{Name: "BASE", Value: "own $(P_BASE)"}}},
			want: "BASE=own secret bad key!=x k=v P_BASE=secret P_pw=$(BASE) " + master},
		{name: "files", container: env(file("A", "f.env", "TWO", false), file("B", "none", "X", true), file("C", "f.env", "NONE", true)), want: "A=two\nlines " + master},
		{name: "missing file", container: env(file("B", "none", "X", false)), bad: "none of volume v"},
		{name: "resources", container: func() *corev1.Container {
			c := env(res("M", "limits.memory", ""), res("Mi", "limits.memory", "1Mi"), res("CPU", "requests.cpu", ""), res("MILLI", "requests.cpu", "1m"), res("NODE", "limits.cpu", ""))
			c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
			c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")}
			return c
		}(), want: "M=67108864 Mi=64 CPU=1 MILLI=250 NODE=4 " + master},
		{name: "resources of the whole", container: func() *corev1.Container {
			c := env(res("M", "limits.memory", ""), res("CPU", "limits.cpu", ""), res("REQUEST", "requests.cpu", "1m"), res("D", "limits.ephemeral-storage", ""))
			c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
			return c
		}(), change: func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourceCPU: resource.MustParse("1250m")},
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}}
		}, want: "M=67108864 CPU=2 REQUEST=0 D=0 " + master},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pod()
			p.Spec.Containers = []corev1.Container{*c.container}
			if c.change != nil {
				c.change(p)
			}
			got, err := Env(p, c.container, surroundings())
			if c.bad != "" {
				var mistake ConfigError
				if err == nil || !strings.Contains(err.Error(), c.bad) || !errors.As(err, &mistake) {
					t.Fatal("error:", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var text []string
			for _, kv := range got {
				text = append(text, kv.Key+"="+string(kv.Value))
			}
			if d := cmp.Diff(c.want, strings.Join(text, " ")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestEnvFile(t *testing.T) {
	for text, want := range map[string]string{
		"A='1'\nB=''\n": "A=1 B=", "A='x' # why\n": "A=x", "": "", "A=1\n": "error", "A='1\n": "error", "1A='x'": "error", "A='x'y\n": "error",
	} {
		vars, err := parseEnvFile(text)
		got := "error"
		if err == nil {
			var parts []string
			for _, k := range []string{"A", "B"} {
				if v, ok := vars[k]; ok {
					parts = append(parts, k+"="+v)
				}
			}
			got = strings.Join(parts, " ")
		}
		if got != want {
			t.Errorf("%q: %q, want %q (%v)", text, got, want, err)
		}
	}
}

func TestPodDNS(t *testing.T) {
	host := ParseResolvConf("# host\nnameserver 1.1.1.1\nsearch corp.example. .\noptions timeout:1 ndots:2\n; x\nnameserver bad\n")
	cluster := DNS{Servers: []string{"10.96.0.10"}, Domain: "cluster.local", Host: host}
	const search = "ns.svc.cluster.local svc.cluster.local cluster.local corp.example"
	for _, c := range []struct {
		name    string
		dns     DNS
		change  func(*corev1.PodSpec)
		want    string
		warning string
	}{
		{"cluster first", cluster, func(*corev1.PodSpec) {}, "10.96.0.10 | " + search + " | ndots:5", ""},
		{"host network", cluster, func(s *corev1.PodSpec) { s.HostNetwork = true }, "1.1.1.1 | corp.example | timeout:1 ndots:2", ""},
		{"host network, cluster first", cluster, func(s *corev1.PodSpec) { s.HostNetwork, s.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet }, "10.96.0.10 | " + search + " | ndots:5", ""},
		{"default", cluster, func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSDefault }, "1.1.1.1 | corp.example | timeout:1 ndots:2", ""},
		{"no cluster dns", DNS{Host: host}, func(*corev1.PodSpec) {}, "1.1.1.1 | corp.example | timeout:1 ndots:2", "Falling back"},
		{"none", cluster, func(s *corev1.PodSpec) {
			s.DNSPolicy = corev1.DNSNone
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"9.9.9.9"}, Searches: []string{"a"}, Options: []corev1.PodDNSConfigOption{{Name: "edns0"}}}
		}, "9.9.9.9 | a | edns0", ""},
		{"merged", cluster, func(s *corev1.PodSpec) {
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"9.9.9.9", "10.96.0.10"}, Searches: []string{"a", "cluster.local"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr("1")}}}
		}, "10.96.0.10 9.9.9.9 | " + search + " a | ndots:1", ""},
		{"too many", cluster, func(s *corev1.PodSpec) {
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"1.0.0.1", "1.0.0.2", "1.0.0.3"}}
		}, "10.96.0.10 1.0.0.1 1.0.0.2 | " + search + " | ndots:5", "Nameserver limits"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pod()
			c.change(&p.Spec)
			got, warning := PodDNS(p, c.dns)
			text := strings.Join(got.Servers, " ") + " | " + strings.Join(got.Searches, " ") + " | " + strings.Join(got.Options, " ")
			if text != c.want || c.warning == "" != (warning == "") || !strings.Contains(warning, c.warning) {
				t.Errorf("%s (%s)\nwant %s", text, warning, c.want)
			}
		})
	}
	if strings.Join(host.Options, " ") != "timeout:1 ndots:2" {
		t.Error("the host's configuration was changed")
	}
}

func TestHosts(t *testing.T) {
	p := pod()
	p.Spec.Hostname, p.Spec.Subdomain = "h", "sub"
	p.Spec.HostAliases = []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a", "b"}}}
	got := Hosts(p, []string{"10.1.0.3", "fd00::3"}, "", "cluster.local")
	want := "10.1.0.3\th.sub.ns.svc.cluster.local\th\nfd00::3\th.sub.ns.svc.cluster.local\th\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
	if !strings.HasPrefix(got, "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n") || !strings.HasSuffix(got, want) {
		t.Errorf("%s", got)
	}
	p.Spec.HostNetwork = true
	if got := Hosts(p, nil, "127.0.0.1 here\n", ""); got != "# Kubernetes-managed hosts file (host network).\n127.0.0.1 here\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n" {
		t.Errorf("%s", got)
	}
}

func TestSandbox(t *testing.T) {
	p := pod()
	p.Spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080, Protocol: corev1.ProtocolUDP}},
		Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("64Mi")}}}}
	p.Spec.ShareProcessNamespace = ptr(true)
	p.Spec.Hostname, p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = "h", "sub", ptr(true)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(7)), FSGroup: ptr(int64(9)), SupplementalGroups: []int64{8},
		Sysctls: []corev1.Sysctl{{Name: "net/ipv4/tcp_syncookies", Value: "1"}}}
	c, err := Sandbox(p, 2, nil, nil, Node{CgroupRoot: "/y", LogRoot: "/var/log/pods", ClusterDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	sc := c.Linux.SecurityContext
	for what, ok := range map[string]bool{
		"hostname":   c.Hostname == "h.sub.ns.svc.cluster.local",
		"logs":       c.LogDirectory == "/var/log/pods/ns_web_u1",
		"attempt":    c.Metadata.Attempt == 2,
		"labels":     c.Labels["app"] == "x" && c.Labels[PodUIDLabel] == "u1",
		"port":       cmp.Equal(c.PortMappings[0].HostPort, int32(8080)) && c.PortMappings[0].Protocol == runtimeapi.Protocol_UDP,
		"cgroup":     c.Linux.CgroupParent == "/y/kubepods/podu1",
		"limits":     c.Linux.Resources.CpuQuota == 50000 && c.Linux.Resources.MemoryLimitInBytes == 64<<20,
		"namespaces": sc.NamespaceOptions.Pid == runtimeapi.NamespaceMode_POD && sc.NamespaceOptions.Network == runtimeapi.NamespaceMode_POD,
		"user":       sc.RunAsUser.Value == 7 && cmp.Equal(sc.SupplementalGroups, []int64{8, 9}),
		"sysctl":     c.Linux.Sysctls["net.ipv4.tcp_syncookies"] == "1",
	} {
		if !ok {
			t.Errorf("%s: %v", what, c)
		}
	}
	users := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}}
	c, err = Sandbox(p, 0, nil, users, Node{})
	if err != nil || c.Linux.SecurityContext.NamespaceOptions.UsernsOptions != users {
		t.Errorf("user namespace: %v, %v", c, err)
	}
	k, err := Container(p, &p.Spec.Containers[0], Parts{Users: users, Mounts: []*runtimeapi.Mount{{}}}, Node{})
	if err != nil || k.Linux.SecurityContext.NamespaceOptions.UsernsOptions != users || k.Mounts[0].UidMappings[0] != users.Uids[0] {
		t.Errorf("container in a user namespace: %v, %v", k, err)
	}
}

func TestContainer(t *testing.T) {
	p := pod()
	c := corev1.Container{Name: "c", Image: "i", Command: []string{"run", "$(A)"}, Args: []string{"$(B)"},
		Lifecycle: &corev1.Lifecycle{StopSignal: ptr(corev1.Signal("SIGRTMIN+1"))},
		SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true), RunAsGroup: ptr(int64(5)),
			Capabilities:   &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: ptr("p/x.json")}}}
	got, err := Container(p, &c, Parts{Attempt: 3, Kind: Init, ImageRef: "sha256:1", Image: &runtimeapi.Image{Uid: &runtimeapi.Int64Value{Value: 1000}},
		Env: []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}}}, Node{SeccompRoot: "/s"})
	if err != nil {
		t.Fatal(err)
	}
	sc := got.Linux.SecurityContext
	for what, ok := range map[string]bool{
		"command":     cmp.Equal(got.Command, []string{"run", "1"}) && cmp.Equal(got.Args, []string{"$(B)"}),
		"signal":      got.StopSignal == runtimeapi.Signal_SIGNAL_SIGRTMINPLUS1,
		"log":         got.LogPath == "c/3.log",
		"annotations": got.Annotations[RestartCountAnnotation] == "3" && got.Annotations[GraceAnnotation] == "30" && got.Annotations[ContainerKindAnnotation] == "init",
		"hash":        SameHash(got.Annotations[HashAnnotation], &c) && !SameHash(got.Annotations[HashAnnotation], &corev1.Container{Name: "c", Image: "j"}),
		"user":        sc.RunAsUser.Value == 1000 && sc.RunAsGroup.Value == 5,
		"privileges":  sc.NoNewPrivs && sc.ReadonlyRootfs && !sc.Privileged && len(sc.MaskedPaths) > 0,
		"caps":        cmp.Equal(sc.Capabilities.AddCapabilities, []string{"NET_ADMIN"}) && cmp.Equal(sc.Capabilities.DropCapabilities, []string{"ALL"}),
		"seccomp":     sc.Seccomp.LocalhostRef == "/s/p/x.json",
	} {
		if !ok {
			t.Errorf("%s: %v", what, got)
		}
	}
	c.SecurityContext.SeccompProfile.LocalhostProfile = ptr("../../etc/passwd")
	if _, err := Container(p, &c, Parts{}, Node{SeccompRoot: "/s"}); err == nil {
		t.Error("a profile outside of the folder was taken")
	}
}

// The hash must not change between releases, or an upgrade would restart every container.
// The container's own word counts over its annotation, and both over the pod's. Runtimes are told in both of CRI's ways.
func TestAppArmor(t *testing.T) {
	mine, empty := "mine", ""
	local := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &mine}
	usual := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	for name, c := range map[string]struct {
		container, pod *corev1.AppArmorProfile
		annotation     string
		want           string
	}{
		"nothing":               {want: "<nil> "},
		"local":                 {container: local, annotation: "unconfined", pod: usual, want: `profile_type:Localhost localhost_ref:"mine" localhost/mine`},
		"annotation":            {annotation: "unconfined", pod: usual, want: "profile_type:Unconfined unconfined"},
		"pod":                   {annotation: "odd", pod: usual, want: " runtime/default"},
		"no name":               {container: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &empty}, want: "localhostProfile must be set"},
		"no name in annotation": {annotation: "localhost/", want: "localhostProfile must be set"},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", SecurityContext: &corev1.SecurityContext{AppArmorProfile: c.container}}},
			SecurityContext: &corev1.PodSecurityContext{AppArmorProfile: c.pod}}}
		pod.Annotations = map[string]string{corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix + "a": c.annotation}
		profile, older, err := apparmor(pod, &pod.Spec.Containers[0])
		got := strings.ReplaceAll(fmt.Sprint(profile), "  ", " ") + " " + older
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestHashIsStable(t *testing.T) {
	c := corev1.Container{Name: "app", Image: "nginx:1"}
	if got := Hash(&c); got != "v1:b993eda7211813b9" {
		t.Errorf("hash %s: make a new version instead", got)
	}
	for _, foreign := range []string{"", "v9:1", "5f3e"} {
		if !SameHash(foreign, &c) {
			t.Errorf("a container with hash %q would be replaced", foreign)
		}
	}
}

func TestVerifyNonRoot(t *testing.T) {
	uid := func(n int64) *runtimeapi.Image { return &runtimeapi.Image{Uid: &runtimeapi.Int64Value{Value: n}} }
	for _, c := range []struct {
		name  string
		user  *int64
		image *runtimeapi.Image
		ok    bool
	}{
		{"image's user", nil, uid(1000), true}, {"image's root", nil, uid(0), false}, {"root by name", nil, &runtimeapi.Image{Username: "root"}, false},
		{"unknown name", nil, &runtimeapi.Image{Username: "web"}, false}, {"no user at all", nil, &runtimeapi.Image{}, false}, {"no image", nil, nil, false},
		{"own root", ptr(int64(0)), uid(1000), false}, {"own user", ptr(int64(5)), uid(0), true},
	} {
		p := pod()
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: ptr(true), RunAsUser: c.user}
		if err := VerifyNonRoot(p, &corev1.Container{Name: "c"}, c.image); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestHostname(t *testing.T) {
	p := pod()
	p.Name = strings.Repeat("a", 62) + "-" + strings.Repeat("b", 10)
	if name, _ := Hostname(p, ""); name != strings.Repeat("a", 62) {
		t.Error(name)
	}
}

func TestUnsupported(t *testing.T) {
	for want, change := range map[string]func(*corev1.Pod){
		"":                      func(*corev1.Pod) {},
		"spec.os.name: windows": func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} },
		"restartPolicyRules action RestartAllContainers of container c": func(p *corev1.Pod) {
			p.Spec.Containers = []corev1.Container{{Name: "c", RestartPolicyRules: []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestartAllContainers}}}}
		},
	} {
		p := pod()
		change(p)
		if got := Unsupported(p); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestPath(t *testing.T) {
	p := pod()
	p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
	p.Spec.Containers = []corev1.Container{{Name: "m"}}
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e"}}}
	for name, want := range map[string]string{"i": "spec.initContainers{i}", "m": "spec.containers{m}", "e": "spec.ephemeralContainers{e}"} {
		if got := Path(p, name); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
