package criserver

import (
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
)

// TestSysctls: a pod sets what is its namespaces', and nothing of the host's.
func TestSysctls(t *testing.T) {
	t.Parallel()
	for name, own := range map[string]struct{ pod, hostNetwork, hostIPC bool }{
		"net.ipv4.ip_forward": {true, false, true}, "net/ipv4/conf/eth0.1/forwarding": {true, false, true},
		"kernel.shmmax": {true, true, false}, "kernel.sem": {true, true, false}, "fs.mqueue.msg_max": {true, true, false},
		"kernel.hostname": {true, false, true},
		"vm.swappiness":   {}, "kernel.panic": {}, "net": {}, "": {}, "net/../vm/swappiness": {}, "net/ipv4/../../kernel/panic": {}, "../kernel/shmmax": {}, "kernel/shm/../panic": {},
	} {
		for _, c := range []struct {
			network, ipc runtimeapi.NamespaceMode
			want         bool
		}{
			{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD, own.pod},
			{runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD, own.hostNetwork},
			{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE, own.hostIPC},
		} {
			err := checkSandbox(&runtimeapi.PodSandboxConfig{
				Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Uid: "u"},
				Linux: &runtimeapi.LinuxPodSandboxConfig{Sysctls: map[string]string{name: "1"}, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Network: c.network, Ipc: c.ipc},
				}},
			})
			if (err == nil) != c.want || err != nil && cri.Code(err) != codes.InvalidArgument {
				t.Errorf("%q, network %s, IPC %s: %v", name, c.network, c.ipc, err)
			}
		}
	}
}
