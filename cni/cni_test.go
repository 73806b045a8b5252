package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
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
		`{"bandwidth":{"egressBurst":0,"egressRate":0,"ingressBurst":4294967295,"ingressRate":1},"cgroupPath":"/kubepods/x",` +
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

// TestPrune has a plugin fail for one pod that is gone and hang for another, with a child that outlives it: the rest is pruned, what is left is told,
// and can be torn down when the plugin is well again.
func TestPrune(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := ExecConfig{ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")}, CacheDir: filepath.Join(dir, "cache"), NetNSDir: filepath.Join(dir, "netns")}
	for _, d := range []string{c.ConfDir, c.BinDirs[0], c.NetNSDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	plugin := `#!/bin/sh
cat > /dev/null
case $CNI_COMMAND-$CNI_CONTAINERID in
ADD-*) echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/24"}]}' ;;
DEL-*) [ -e ` + dir + `/well ] || case $CNI_CONTAINERID in
	fails) exit 1 ;;
	hangs) cat ` + dir + `/release ;;
	esac ;;
esac
`
	for file, text := range map[string]string{filepath.Join(c.BinDirs[0], "x"): plugin,
		filepath.Join(c.ConfDir, "x.conflist"): `{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "x"}]}`} {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	e := NewExec(c)
	for _, id := range []string{"fails", "goes", "hangs", "lives"} {
		if _, err := e.Setup(t.Context(), Pod{ID: id, NetNS: "/nowhere"}); err != nil {
			t.Fatal(err)
		}
	}
	kept := func() (list []string) {
		all, err := e.cni.GetCachedAttachments("")
		if err != nil {
			t.Error(err)
		}
		for _, a := range all {
			list = append(list, a.ContainerID)
		}
		slices.Sort(list)
		return list
	}
	release := filepath.Join(dir, "release")
	if err := unix.Mkfifo(release, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	hangs := make(chan *os.File)
	go func() {
		f, err := os.OpenFile(release, os.O_WRONLY, 0) // when the plugin's child has it too
		if err != nil {
			t.Error(err)
		}
		for slices.Contains(kept(), "goes") {
			runtime.Gosched()
		}
		cancel() // as the end of the time does
		hangs <- f
	}()
	err := e.Prune(ctx, []Pod{{ID: "lives"}})
	defer (<-hangs).Close() // and the child ends
	left, ok := errors.AsType[*LeftError](err)
	if !ok || !slices.ContainsFunc(left.Pods, func(p Pod) bool { return p.ID == "hangs" }) {
		t.Fatalf("got %v", err)
	}
	if got := kept(); fmt.Sprint(got) != "[fails hangs lives]" {
		t.Errorf("attached: %v", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "well"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range left.Pods {
		if err := e.Teardown(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	if got := kept(); fmt.Sprint(got) != "[lives]" {
		t.Errorf("attached: %v, left were %v", got, left.Pods)
	}
}
