package criserver

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux/apparmor"
)

// kernelProfiles is AppArmor as far as profiles sees it.
type kernelProfiles struct {
	has  map[string]bool
	text []string
	fail error
}

func (k *kernelProfiles) load(_ context.Context, text string) error {
	if k.fail != nil {
		return k.fail
	}
	k.text = append(k.text, text)
	_, name, _ := strings.Cut(text, "\nprofile ")
	name, _, _ = strings.Cut(name, " ")
	k.has[name] = true
	return nil
}

func (k *kernelProfiles) loaded(name string) (bool, error) { return k.has[name], nil }

func (k *kernelProfiles) profiles() *profiles {
	return &profiles{usual: "yare-x", load: k.load, loaded: k.loaded, log: slog.New(slog.DiscardHandler)}
}

func asking(kind runtimeapi.SecurityProfile_ProfileType, name string) *runtimeapi.LinuxContainerSecurityContext {
	return &runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: name}}
}

func TestAppArmorProfiles(t *testing.T) {
	t.Parallel()
	const local, usual, none = runtimeapi.SecurityProfile_Localhost, runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined
	older := func(text string) *runtimeapi.LinuxContainerSecurityContext {
		return &runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: text}
	}
	privileged := func(sc *runtimeapi.LinuxContainerSecurityContext) *runtimeapi.LinuxContainerSecurityContext {
		sc.Privileged = true
		return sc
	}
	for name, c := range map[string]struct {
		sc *runtimeapi.LinuxContainerSecurityContext
		// want is the profile where there is AppArmor; "!" begins an error. without is the same where there is none, and unloadable
		// where the default profile cannot be loaded.
		want, without, unloadable string
	}{
		"nothing":                    {nil, "yare-x", "", ""},
		"default":                    {asking(usual, ""), "yare-x", "!RuntimeDefault: this host has no AppArmor", "!RuntimeDefault: this host has no apparmor_parser"},
		"default, older":             {older("runtime/default"), "yare-x", "!no AppArmor", "!no apparmor_parser"},
		"unconfined":                 {asking(none, ""), "", "", ""},
		"unconfined, older":          {older("unconfined"), "", "", ""},
		"local":                      {asking(local, "mine"), "mine", `!"mine": this host has no AppArmor`, "mine"},
		"local with prefix":          {asking(local, "localhost/mine"), "mine", "!no AppArmor", "mine"},
		"local, older":               {older("localhost/mine"), "mine", "!no AppArmor", "mine"},
		"not loaded":                 {asking(local, "other"), `!"other": it is not loaded`, "!no AppArmor", "!not loaded"},
		"unconfined is no profile":   {asking(local, "unconfined"), "!not loaded", "!no AppArmor", "!not loaded"},
		"no name":                    {asking(local, "localhost/"), "!localhost_ref", "!localhost_ref", "!localhost_ref"},
		"odd type":                   {asking(7, ""), "!type 7", "!type 7", "!type 7"},
		"odd text":                   {older("local/mine"), `!apparmor_profile "local/mine"`, "!apparmor_profile", "!apparmor_profile"},
		"privileged":                 {privileged(older("")), "", "", ""},
		"privileged with default":    {privileged(asking(usual, "")), "", "!no AppArmor", ""},
		"privileged with a profile":  {privileged(asking(local, "mine")), "mine", "!no AppArmor", "mine"},
		"the newer way goes first":   {&runtimeapi.LinuxContainerSecurityContext{ApparmorProfile: "odd", Apparmor: asking(none, "").Apparmor}, "", "", ""},
		"privileged and without any": {privileged(asking(none, "")), "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check := func(where string, p *profiles, want string) {
				t.Helper()
				got, err := p.of(t.Context(), c.sc)
				if text, ok := strings.CutPrefix(want, "!"); ok {
					if err == nil || !strings.Contains(err.Error(), text) {
						t.Errorf("%s: %q, %v, want an error with %q", where, got, err, text)
					}
				} else if err != nil || got != want {
					t.Errorf("%s: %q, %v, want %q", where, got, err, want)
				}
			}
			check("with AppArmor", (&kernelProfiles{has: map[string]bool{"mine": true}}).profiles(), c.want)
			check("without AppArmor", nil, c.without)
			check("without its compiler", (&kernelProfiles{has: map[string]bool{"mine": true}, fail: apparmor.ErrNoParser}).profiles(), c.unloadable)
		})
	}
}

// The default profile is loaded once, again where somebody removed it, and anew at each start, since its text may be another release's.
func TestAppArmorDefault(t *testing.T) {
	t.Parallel()
	k := &kernelProfiles{has: map[string]bool{}}
	p := k.profiles()
	use := func(loads int) {
		t.Helper()
		if got, err := p.of(t.Context(), nil); err != nil || got != "yare-x" || len(k.text) != loads {
			t.Errorf("%q, %v, loaded %d times, want %d", got, err, len(k.text), loads)
		}
	}
	use(1)
	use(1)
	delete(k.has, "yare-x")
	use(2)
	if err := p.renew(t.Context()); err != nil || len(k.text) != 3 {
		t.Errorf("%v, loaded %d times", err, len(k.text))
	}
	for _, text := range k.text {
		if text != k.text[0] || strings.Contains(text, "NAME") {
			t.Errorf("the text is\n%s", text)
		}
	}
	// A failure that nobody could know of at the start is no reason not to run either. It is said once.
	var log strings.Builder
	p.log = slog.New(slog.NewTextHandler(&log, nil))
	k.has, k.fail = map[string]bool{}, errors.New("not permitted")
	for range 3 {
		if got, err := p.of(t.Context(), nil); err != nil || got != "" {
			t.Errorf("%q, %v", got, err)
		}
	}
	if n := strings.Count(log.String(), "not permitted"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, log.String())
	}
}

// Exec's pattern is the container's process, so what is said there holds for both.
func TestAppArmorInSpec(t *testing.T) {
	t.Parallel()
	in := plainInput()
	in.AppArmor = "mine"
	s, err := containerSpec(in)
	if err != nil || s.Process.ApparmorProfile != "mine" {
		t.Errorf("%v, %v", s, err)
	}
}
