package critest

import (
	"errors"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux/apparmor"
)

// appArmorCases find a host with AppArmor under `make test-v2`. Elsewhere they make sure that whoever asks for a profile is not run without.
func appArmorCases() []Case {
	return []Case{
		{"unconfined AppArmor is taken", 0, appArmorUnconfined},
		{"without a word AppArmor's default profile holds", 0, appArmorUsual},
		{"AppArmor's default profile may be asked for", 0, appArmorDefault},
		{"AppArmor's default profile forbids mounts and the kernel's settings", 0, appArmorForbids},
		{"a privileged container is unconfined", 0, appArmorPrivileged},
		{"a loaded profile holds", 0, appArmorLoaded},
		{"a loaded profile holds for exec", 0, appArmorExec},
		{"a profile that is not loaded is refused", 0, appArmorMissing},
	}
}

// hasAppArmor says whether the host can load profiles.
func (t *T) hasAppArmor() bool {
	t.Helper()
	if !apparmor.Enabled() {
		return false
	}
	err := apparmor.Load(t.Context(), "")
	if err != nil && !errors.Is(err, apparmor.ErrNoParser) {
		t.Fatal(err)
	}
	return err == nil
}

// ownLabel prints the profile that a process is under, without its mode; nothing where the host has no AppArmor.
const ownLabel = "sed 's/ .*//' /proc/self/attr/current 2>/dev/null"

// appArmor is what a container prints that is changed so.
func (t *T) appArmor(script string, change func(*securityContext)) string {
	t.Helper()
	c := t.script(script)
	change(security(c))
	_, log := t.finish(t.any(), c)
	return strings.TrimSpace(said(log, "stdout"))
}

func appArmorUnconfined(t *T) {
	got := t.appArmor(ownLabel, func(s *securityContext) { s.Apparmor = profile(runtimeapi.SecurityProfile_Unconfined, "") })
	if got != "unconfined" && (got != "" || t.hasAppArmor()) {
		t.Errorf("%q", got)
	}
}

func appArmorUsual(t *T) {
	got := t.appArmor(ownLabel, func(*securityContext) {})
	if confined := got != "unconfined" && got != ""; confined != t.hasAppArmor() {
		t.Errorf("%q", got)
	}
}

func appArmorDefault(t *T) {
	for _, change := range []func(*securityContext){
		func(s *securityContext) { s.Apparmor = profile(runtimeapi.SecurityProfile_RuntimeDefault, "") },
		func(s *securityContext) { s.ApparmorProfile = "runtime/default" },
	} {
		if !t.hasAppArmor() {
			c := t.config("true")
			change(security(c))
			t.refused("a profile where there are none", t.runs(t.any(), c))
			continue
		}
		if got, usual := t.appArmor(ownLabel, change), t.appArmor(ownLabel, func(*securityContext) {}); got != usual {
			t.Errorf("%q, and without a word %q", got, usual)
		}
	}
}

// Capabilities and file systems would allow it all.
func appArmorForbids(t *T) {
	if !t.hasAppArmor() {
		return
	}
	const script = `try() { "$@" 2>/dev/null && echo allowed || echo refused; }
try mount -t tmpfs tmpfs /mnt
try sh -c 'echo 1 >/proc/sys/vm/compact_memory'
try sh -c 'echo 1000 >/proc/sys/kernel/shmmni'
try touch /tmp/file
try chmod 700 /tmp/file
try sh -c 'sleep 100 & kill $!'
try sh -c 'echo 0 >/proc/self/oom_score_adj'`
	run := func(change func(*securityContext)) string {
		return strings.Join(strings.Fields(t.appArmor(script, func(s *securityContext) {
			adding("SYS_ADMIN")(s)
			change(s)
		})), " ")
	}
	if got := run(func(s *securityContext) { s.Apparmor = profile(runtimeapi.SecurityProfile_Unconfined, "") }); strings.Contains(got, "refused") {
		t.Errorf("unconfined: %s", got)
	}
	if got := run(func(*securityContext) {}); got != "refused refused allowed allowed allowed allowed allowed" {
		t.Errorf("confined: %s", got)
	}
}

func appArmorPrivileged(t *T) {
	c := privileged(t.script(ownLabel))
	_, log := t.finish(t.privilegedPod(), c)
	if got := strings.TrimSpace(said(log, "stdout")); got != "unconfined" && got != "" {
		t.Errorf("%q", got)
	}
}

// loadProfile loads one that keeps containers from writing to /work.
func (t *T) loadProfile() string {
	t.Helper()
	name := t.unique("critest")
	text := fmt.Sprintf("profile %s flags=(attach_disconnected) {\n  file,\n  network,\n  capability,\n  signal,\n  ptrace,\n  umount,\n  deny /work/** w,\n}\n", name)
	if err := apparmor.Load(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := apparmor.Remove(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

func appArmorLoaded(t *T) {
	if !t.hasAppArmor() {
		return
	}
	name := t.loadProfile()
	const script = "touch /work/new 2>/dev/null || echo refused; touch /tmp/new && echo made; " + ownLabel
	for _, change := range []func(*securityContext){
		func(s *securityContext) { s.Apparmor = profile(runtimeapi.SecurityProfile_Localhost, name) },
		func(s *securityContext) {
			s.Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "localhost/"+name)
		},
		func(s *securityContext) { s.ApparmorProfile = "localhost/" + name },
	} {
		if got := t.appArmor(script, change); got != "refused\nmade\n"+name {
			t.Errorf("%q", got)
		}
	}
}

func appArmorExec(t *T) {
	if !t.hasAppArmor() {
		return
	}
	name := t.loadProfile()
	id := t.sleeper(t.any(), func(c *containerConfig) {
		security(c).Apparmor = profile(runtimeapi.SecurityProfile_Localhost, name)
		security(c).NoNewPrivs = true
	})
	t.wantExec(id, name+"\nrefused\n", "sh", "-c", ownLabel+"; touch /work/new 2>/dev/null || echo refused")
	t.stop(id, 0)
}

func appArmorMissing(t *T) {
	c := t.config("true")
	security(c).Apparmor = profile(runtimeapi.SecurityProfile_Localhost, t.unique("no-such-profile"))
	t.refused("a profile that is not loaded", t.runs(t.any(), c))
	c = t.config("true")
	security(c).ApparmorProfile = "localhost/" + t.unique("no-such-profile")
	t.refused("a profile that is not loaded", t.runs(t.any(), c))
}
