package critest

import (
	"fmt"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func securityCases() []Case {
	return []Case{
		{"capabilities are the usual ones", 0, capsUsual},
		{"a capability is added", 0, capsAdd},
		{"a capability is dropped", 0, capsDrop},
		{"all capabilities are dropped", 0, capsDropAll},
		{"all are dropped but one that is added", 0, capsDropAllAddOne},
		{"all capabilities are added", 0, capsAddAll},
		{"another user has none in effect", 0, capsUser},
		{"an ambient capability is another user's in effect", 24, capsAmbient},
		{"a privileged container has all capabilities", 0, privilegedCaps},
		{"a privileged container has the host's devices", 0, privilegedDevices},
		{"a privileged container may write to /sys", 0, privilegedSys},
		{"no other container may write to /sys", 0, ordinarySys},
		{"masked paths are empty", 0, maskedPaths},
		{"read-only paths cannot be written", 0, readonlyPaths},
		{"a read-only root cannot be written", 0, readonlyRoot},
		{"with a read-only root /dev and mounts are written", 0, readonlyRootMounts},
		{"without a profile there is no filter", 0, seccompNone},
		{"unconfined has no filter", 0, seccompUnconfined},
		{"the runtime's own profile is a filter", 0, seccompDefault},
		{"the runtime's own profile forbids what it should", 0, seccompDefaultForbids},
		{"a profile of the host is a filter", 0, seccompLocal},
		{"a profile that is not there is refused", 0, seccompMissing},
		{"a privileged container has no filter", 0, seccompPrivileged},
	}
}

// effective are the capabilities of a container's first process in one of its sets.
func (t *T) caps(set string, change func(*securityContext)) uint64 {
	t.Helper()
	c := t.config("awk", "/^"+set+":/ {print $2}", "/proc/self/status")
	change(security(c))
	_, log := t.finish(t.any(), c)
	n, err := strconv.ParseUint(strings.TrimSpace(said(log, "stdout")), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const (
	bitChown, bitNetAdmin, bitNetRaw, bitSysAdmin, bitNetBind = 0, 12, 13, 21, 10
)

// usual is what containers of every runtime have: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
// net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
const usual = 0xa80425fb

func capsUsual(t *T) {
	for _, set := range []string{"CapEff", "CapPrm", "CapBnd"} {
		if got := t.caps(set, func(*securityContext) {}); got != usual {
			t.Errorf("%s %x, want %x", set, got, usual)
		}
	}
	if got := t.caps("CapInh", func(*securityContext) {}); got != 0 { // CVE-2022-24769
		t.Errorf("inheritable %x", got)
	}
}

func adding(names ...string) func(*securityContext) {
	return func(s *securityContext) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: names} }
}

func dropping(names ...string) func(*securityContext) {
	return func(s *securityContext) { s.Capabilities = &runtimeapi.Capability{DropCapabilities: names} }
}

func capsAdd(t *T) {
	if got := t.caps("CapEff", adding("NET_ADMIN")); got != usual|1<<bitNetAdmin {
		t.Errorf("%x", got)
	}
}

func capsDrop(t *T) {
	if got := t.caps("CapBnd", dropping("CHOWN")); got != usual&^(1<<bitChown) {
		t.Errorf("%x", got)
	}
}

func capsDropAll(t *T) {
	for _, set := range []string{"CapEff", "CapBnd"} {
		if got := t.caps(set, dropping("ALL")); got != 0 {
			t.Errorf("%s %x", set, got)
		}
	}
}

func capsDropAllAddOne(t *T) {
	got := t.caps("CapEff", func(s *securityContext) {
		s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
	})
	if got != 1<<bitNetBind {
		t.Errorf("%x", got)
	}
}

func capsAddAll(t *T) {
	got := t.caps("CapEff", func(s *securityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"NET_RAW"}}
	})
	if got&usual|1<<bitNetRaw != usual || got&(1<<bitSysAdmin) == 0 || got&(1<<bitNetRaw) != 0 {
		t.Errorf("%x", got)
	}
}

func capsUser(t *T) {
	if got := t.caps("CapEff", func(s *securityContext) { s.RunAsUser = number(1000) }); got != 0 {
		t.Errorf("%x", got)
	}
}

func capsAmbient(t *T) {
	got := t.caps("CapEff", func(s *securityContext) {
		s.RunAsUser, s.Capabilities = number(1000), &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	})
	if got != 1<<bitNetBind {
		t.Errorf("%x", got)
	}
}

func (t *T) privilegedPod() pods {
	t.Helper()
	return t.own(func(c *sandboxConfig) { c.Linux.SecurityContext.Privileged = true })
}

func privileged(c *containerConfig) *containerConfig {
	security(c).Privileged = true
	return c
}

func privilegedCaps(t *T) {
	c := privileged(t.config("awk", "/^CapEff:/ {print $2}", "/proc/self/status"))
	_, log := t.finish(t.privilegedPod(), c)
	if n, err := strconv.ParseUint(strings.TrimSpace(said(log, "stdout")), 16, 64); err != nil || n&(1<<bitSysAdmin|1<<bitNetAdmin|usual) != 1<<bitSysAdmin|1<<bitNetAdmin|usual {
		t.Errorf("%x, %v", n, err)
	}
}

func privilegedDevices(t *T) {
	t.prints("yes\n", t.privilegedPod(), privileged(t.script("test -c /dev/kmsg -o -c /dev/tty0 -o -c /dev/loop-control -o -c /dev/fuse && echo yes")))
	t.prints("no\n", t.any(), t.script("test -c /dev/kmsg -o -c /dev/tty0 -o -c /dev/loop-control -o -c /dev/fuse || echo no"))
}

// mountOptions prints how something is mounted.
func mountOptions(at string) string {
	return fmt.Sprintf("awk '$2 == \"%s\" {split($4, o, \",\"); print o[1]}' /proc/mounts | tail -n 1", at)
}

func privilegedSys(t *T) {
	t.prints("rw\n", t.privilegedPod(), privileged(t.script(mountOptions("/sys"))))
}
func ordinarySys(t *T) { t.prints("ro\n", t.any(), t.script(mountOptions("/sys"))) }

func maskedPaths(t *T) {
	c := t.script("cat /proc/timer_list 2>/dev/null | wc -c; for d in /proc/acpi /sys/firmware; do ls $d 2>/dev/null | wc -l; done")
	security(c).MaskedPaths = []string{"/proc/timer_list", "/proc/acpi", "/sys/firmware", "/no/such/path"}
	t.prints("0\n0\n0\n", t.any(), c)
}

func readonlyPaths(t *T) {
	c := t.script("touch /work/new 2>/dev/null || echo refused; touch /tmp/new && echo made")
	security(c).ReadonlyPaths = []string{"/work", "/no/such/path"}
	t.prints("refused\nmade\n", t.any(), c)
}

func readonlyRoot(t *T) {
	c := t.script("touch /new 2>/dev/null || echo refused")
	security(c).ReadonlyRootfs = true
	t.prints("refused\n", t.any(), c)
}

func readonlyRootMounts(t *T) {
	c := t.script("touch /dev/shm/new /data/new && echo made")
	security(c).ReadonlyRootfs = true
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: t.folder()}}
	t.prints("made\n", t.any(), c)
}

func (t *T) seccomp(want string, change func(*securityContext)) {
	t.Helper()
	c := t.config("awk", "/^Seccomp:/ {print $2}", "/proc/self/status")
	change(security(c))
	t.prints(want+"\n", t.any(), c)
}

func profile(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
}

func seccompNone(t *T) { t.seccomp("0", func(*securityContext) {}) }

func seccompUnconfined(t *T) {
	t.seccomp("0", func(s *securityContext) { s.Seccomp = profile(runtimeapi.SecurityProfile_Unconfined, "") })
}

func seccompDefault(t *T) {
	t.seccomp("2", func(s *securityContext) { s.Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "") })
}

// A mount needs the capability that the profile goes by.
func seccompDefaultForbids(t *T) {
	c := t.script("mount -t tmpfs tmpfs /mnt 2>/dev/null || echo refused; chmod 700 /work && echo changed")
	security(c).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
	t.prints("refused\nchanged\n", t.any(), c)
}

func seccompLocal(t *T) {
	path := t.file("profile.json", `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod", "fchmodat", "fchmod"], "action": "SCMP_ACT_ERRNO"}]}`)
	c := t.script("chmod 700 /work 2>/dev/null || echo refused; touch /work/new && echo made")
	security(c).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, path)
	t.prints("refused\nmade\n", t.any(), c)
}

func seccompMissing(t *T) {
	c := t.config("true")
	security(c).Seccomp = profile(runtimeapi.SecurityProfile_Localhost, t.folder()+"/none.json")
	t.refused("a profile that is not there", t.runs(t.any(), c))
}

func seccompPrivileged(t *T) {
	c := privileged(t.config("awk", "/^Seccomp:/ {print $2}", "/proc/self/status"))
	security(c).Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
	t.prints("0\n", t.privilegedPod(), c)
}

func namespaceCases() []Case {
	return []Case{
		{"processes are a container's own", 0, pidContainer},
		{"processes are the pod's", 0, pidPod},
		{"processes are the host's", 0, pidNode},
		{"processes are another container's", 0, pidTarget},
		{"another container that is not there is refused", 0, pidTargetUnknown},
		{"the network is the pod's", 0, networkPod},
		{"System V memory and /dev/shm are the pod's", 0, ipcPod},
		{"System V memory and /dev/shm are the host's", 0, ipcNode},
		{"two pods have two", 0, ipcTwo},
		{"the name is the pod's", 0, utsPod},
		{"with the host's network the name is the host's", 0, utsNode},
		{"mounts are a container's own", 0, mountContainer},
	}
}

func pidContainer(t *T) {
	pod := t.own()
	t.sleeper(pod)
	t.prints("1\n", pod, t.script("echo $$; ps | grep '[s]leep 100000' || true"))
}

func sharing(pid runtimeapi.NamespaceMode, target string) func(*containerConfig) {
	return func(c *containerConfig) {
		security(c).NamespaceOptions.Pid, security(c).NamespaceOptions.TargetId = pid, target
	}
}

func podMode(pid, ipc runtimeapi.NamespaceMode) func(*sandboxConfig) {
	return func(c *sandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid, c.Linux.SecurityContext.NamespaceOptions.Ipc = pid, ipc
	}
}

// sees prints how many of the sleepers there are.
func (t *T) sees(want int, pod pods, change func(*containerConfig)) {
	t.Helper()
	c := t.script("ps | grep -c '[s]leep 100000' || true")
	change(c)
	t.prints(fmt.Sprintln(want), pod, c)
}

func pidPod(t *T) {
	pod := t.own(podMode(runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD))
	for range 2 {
		t.sleeper(pod, sharing(runtimeapi.NamespaceMode_POD, ""))
	}
	t.sees(2, pod, sharing(runtimeapi.NamespaceMode_POD, ""))
}

func pidNode(t *T) {
	pod := t.own(podMode(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD))
	a, b := t.config(), t.config()
	sharing(runtimeapi.NamespaceMode_NODE, "")(a)
	sharing(runtimeapi.NamespaceMode_NODE, "")(b)
	other := t.own(podMode(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD))
	if x, y := t.namespaceOf("pid", pod, a), t.namespaceOf("pid", other, b); x == "" || x != y {
		t.Errorf("%q and %q", x, y)
	}
}

func pidTarget(t *T) {
	pod := t.own()
	target := t.sleeper(pod)
	t.sees(1, pod, sharing(runtimeapi.NamespaceMode_TARGET, target))
}

func pidTargetUnknown(t *T) {
	c := t.config("true")
	sharing(runtimeapi.NamespaceMode_TARGET, "0123456789abcdef")(c)
	t.refused("a target that is not there", t.runs(t.any(), c))
}

func (t *T) sameNamespace(kind string, pod pods) {
	t.Helper()
	if a, b := t.namespaceOf(kind, pod, t.config()), t.namespaceOf(kind, pod, t.config()); a == "" || a != b {
		t.Errorf("%q and %q", a, b)
	}
}

func networkPod(t *T) { t.sameNamespace("net", t.any()) }

func ipcPod(t *T) {
	pod := t.own()
	t.sameNamespace("ipc", pod)
	t.prints("", pod, t.script("echo shared > /dev/shm/file"))
	t.prints("shared\n", pod, t.script("cat /dev/shm/file"))
}

func ipcNode(t *T) {
	a := t.own(podMode(runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE))
	b := t.own(podMode(runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE))
	node := func(c *containerConfig) *containerConfig {
		security(c).NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
		return c
	}
	if x, y := t.namespaceOf("ipc", a, node(t.config())), t.namespaceOf("ipc", b, node(t.config())); x == "" || x != y {
		t.Errorf("%q and %q", x, y)
	}
	name := "/dev/shm/critest" + strings.ReplaceAll(t.Dir, "/", "-") // the host's: other runs may be there
	t.prints("", a, node(t.script("echo shared > "+name)))
	t.prints("shared\n", b, node(t.script("cat "+name+"; rm "+name)))
}

func ipcTwo(t *T) {
	a, b := t.own(), t.own()
	if x, y := t.namespaceOf("ipc", a, t.config()), t.namespaceOf("ipc", b, t.config()); x == "" || x == y {
		t.Errorf("%q and %q", x, y)
	}
	t.prints("", a, t.script("echo mine > /dev/shm/file"))
	t.prints("none\n", b, t.script("cat /dev/shm/file 2>/dev/null || echo none"))
}

func utsPod(t *T) { t.sameNamespace("uts", t.any()) }

func utsNode(t *T) {
	a, b := t.own(hostNetwork), t.own(hostNetwork)
	if x, y := t.namespaceOf("uts", a, inHostNetwork(t.config())), t.namespaceOf("uts", b, inHostNetwork(t.config())); x == "" || x != y {
		t.Errorf("%q and %q", x, y)
	}
}

func mountContainer(t *T) {
	// Both run: the number of one that ended may be given again.
	a, _ := t.exec(t.sleeper(t.any()), "readlink", "/proc/self/ns/mnt")
	b, _ := t.exec(t.sleeper(t.any()), "readlink", "/proc/self/ns/mnt")
	if a == "" || a == b {
		t.Errorf("%q and %q", a, b)
	}
}
