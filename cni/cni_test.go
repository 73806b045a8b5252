package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
)

func TestAddrs(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                  "[]",
		"10.0.0.1/24":                       "[10.0.0.1]",
		"10.0.0.1/24 10.0.1.1/24":           "[10.0.0.1]",
		"fd00::1/64 10.0.0.1/24 fd00::2/64": "[fd00::1 10.0.0.1]",
	} {
		r := &Result{}
		for len(in) > 0 {
			var one string
			n, _ := fmt.Sscan(in, &one)
			if n == 0 {
				break
			}
			in = in[min(len(in), len(one)+1):]
			r.IPs = append(r.IPs, IP{Address: netip.MustParsePrefix(one)})
		}
		if got := fmt.Sprint(r.Addrs()); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestRuntimeConf checks what plugins are told.
func TestRuntimeConf(t *testing.T) {
	t.Parallel()
	rt := runtimeConf(Pod{ID: "id", Namespace: "ns", Name: "n", UID: "u", NetNS: "/ns", CgroupParent: "/kubepods/x",
		PortMappings: []PortMapping{{HostPort: 80, ContainerPort: 8080}, {ContainerPort: 1},
			{HostPort: 53, ContainerPort: 53, Protocol: UDP, HostIP: netip.MustParseAddr("192.0.2.1")}},
		Bandwidth: &Bandwidth{IngressRate: 1}, DNS: DNS{Servers: []string{"10.43.0.10"}},
		IPs: []netip.Addr{netip.MustParseAddr("10.0.0.9")}, Annotations: map[string]string{"a": "b"}})
	got, err := json.Marshal([]any{rt.IfName, rt.Args, rt.CapabilityArgs})
	if err != nil {
		t.Fatal(err)
	}
	want := `["eth0",[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","ns"],["K8S_POD_NAME","n"],["K8S_POD_INFRA_CONTAINER_ID","id"],["K8S_POD_UID","u"]],` +
		`{"bandwidth":{"egressBurst":0,"egressRate":0,"ingressBurst":0,"ingressRate":1},"cgroupPath":"/kubepods/x",` +
		`"dns":{"options":null,"searches":null,"servers":["10.43.0.10"]},"io.kubernetes.cri.pod-annotations":{"a":"b"},"ips":["10.0.0.9"],` +
		`"portMappings":[{"containerPort":8080,"hostPort":80,"protocol":"tcp"},{"containerPort":53,"hostIP":"192.0.2.1","hostPort":53,"protocol":"udp"}]}]`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if plain := runtimeConf(Pod{ID: "id"}); len(plain.CapabilityArgs) != 0 {
		t.Errorf("a plain pod has capabilities %v", plain.CapabilityArgs)
	}
}

// TestList checks which file counts, and that it is read anew every time.
func TestList(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bin := t.TempDir()
	e := NewExec(ExecConfig{ConfDir: dir, BinDirs: []string{bin}})
	if _, configured := e.lacking(); configured {
		t.Error("an empty folder is a configuration")
	}
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	is := func(want string) {
		t.Helper()
		l, err := e.list()
		if err != nil || l.Name != want {
			t.Errorf("list %v, %v, want %s", l, err, want)
		}
	}
	write("ignored.txt", "{}")
	write("20.conflist", `{"cniVersion": "1.0.0", "name": "twenty", "plugins": [{"type": "x"}]}`)
	is("twenty")
	write("10.conf", `{"cniVersion": "1.0.0", "name": "ten", "type": "x"}`)
	is("ten")
	if err := os.Remove(filepath.Join(dir, "10.conf")); err != nil {
		t.Fatal(err)
	}
	is("twenty")
	if what, configured := e.lacking(); !configured || !strings.Contains(what, `plugin "x" of `+dir+"/20.conflist, in "+bin) {
		t.Errorf("lacking %q, %v", what, configured)
	}
	if err := os.WriteFile(filepath.Join(bin, "x"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if what, configured := e.lacking(); !configured || what != "" {
		t.Errorf("lacking %q, %v with the plugin there", what, configured)
	}
	write("00.conf", `{"cniVersion": "1.0.0", "name": "zero"}`)
	if _, err := e.list(); err == nil {
		t.Error("a configuration without type was taken")
	}
}

func TestFromCNI(t *testing.T) {
	t.Parallel()
	_, n, _ := net.ParseCIDR("10.0.0.0/8")
	r, err := fromCNI(&types100.Result{IPs: []*types100.IPConfig{{Address: net.IPNet{IP: net.ParseIP("10.0.0.7"), Mask: n.Mask}, Gateway: net.ParseIP("10.0.0.1")}}})
	if err != nil || r.IPs[0].Address.String() != "10.0.0.7/8" || r.IPs[0].Gateway.String() != "10.0.0.1" || r.IPs[0].Interface != -1 {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := fromCNI(&types100.Result{IPs: []*types100.IPConfig{{}}}); err == nil {
		t.Error("a result without an address was taken")
	}
}
