package criserver

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux/apparmor"
)

// usualProfile is the text of the profile of containers that ask for RuntimeDefault or for nothing, under the name NAME.
//
//go:embed apparmor.profile
var usualProfile string

// Prefixes and values of the older of CRI's two ways to name an AppArmor profile.
const (
	appArmorDefault    = "runtime/default"
	appArmorUnconfined = "unconfined"
	localhostPrefix    = "localhost/"
)

// profiles gives containers their AppArmor profiles. It is nil on a host that has no AppArmor.
type profiles struct {
	// usual is the default profile's name.
	usual string
	// load makes the kernel have a profile, and loaded asks for it. They are package apparmor's.
	load   func(ctx context.Context, text string) error
	loaded func(name string) (bool, error)
	log    *slog.Logger

	// loading is held while the default profile is looked for and loaded.
	loading sync.Mutex

	mu   sync.Mutex
	said string // the last failure that was logged
}

func newProfiles(usual string, log *slog.Logger) *profiles {
	return &profiles{usual: usual, load: apparmor.Load, loaded: apparmor.Loaded, log: log}
}

// renew loads the default profile, also over the one that another release of this program may have left.
func (p *profiles) renew(ctx context.Context) error {
	p.loading.Lock()
	defer p.loading.Unlock()
	return p.load(ctx, strings.ReplaceAll(usualProfile, "NAME", p.usual))
}

// ensure loads the default profile where it is missing: administrators' tools remove profiles that they do not know.
func (p *profiles) ensure(ctx context.Context) error {
	p.loading.Lock()
	defer p.loading.Unlock()
	if ok, err := p.loaded(p.usual); err != nil || ok {
		return err
	}
	return p.load(ctx, strings.ReplaceAll(usualProfile, "NAME", p.usual))
}

// of returns the name of a container's profile, which the kernel has; empty is none. A container that asked for nothing is not kept from running
// where the default profile cannot be loaded.
func (p *profiles) of(ctx context.Context, sc *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	asked, err := askedProfile(sc)
	if err != nil {
		return "", err
	}
	switch {
	case asked.GetProfileType() == runtimeapi.SecurityProfile_Unconfined, asked == nil && p == nil:
		return "", nil
	case p == nil:
		return "", fmt.Errorf("AppArmor profile %s: this host has no AppArmor", called(asked))
	case asked.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		ok, err := p.loaded(asked.LocalhostRef)
		if err == nil && !ok {
			err = errors.New("it is not loaded on this host: load it with apparmor_parser")
		}
		if err != nil {
			return "", fmt.Errorf("AppArmor profile %s: %w", called(asked), err)
		}
		return asked.LocalhostRef, nil
	case sc.GetPrivileged():
		return "", nil
	}
	err = p.ensure(ctx)
	switch {
	case err == nil:
		return p.usual, nil
	case asked != nil:
		return "", fmt.Errorf("AppArmor profile %s: %w", called(asked), err)
	}
	p.warn(err)
	return "", nil
}

// warn says what holds without the default profile, once for each reason: a host of which AppArmor shows but a part, as in a container, has one for good.
func (p *profiles) warn(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.said == err.Error() {
		return
	}
	p.said = err.Error()
	p.log.Warn("AppArmor's default profile cannot be loaded: containers that ask for no profile run without, those that ask for RuntimeDefault are refused",
		"profile", p.usual, "err", err)
}

// askedProfile is what a container asks for in either of CRI's ways; nil is nothing.
func askedProfile(sc *runtimeapi.LinuxContainerSecurityContext) (*runtimeapi.SecurityProfile, error) {
	p := sc.GetApparmor()
	if p == nil {
		var err error
		if p, err = namedProfile(sc.GetApparmorProfile()); p == nil || err != nil {
			return nil, err
		}
	}
	switch p.ProfileType {
	case runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined:
		return p, nil
	case runtimeapi.SecurityProfile_Localhost:
		name := strings.TrimPrefix(p.LocalhostRef, localhostPrefix)
		if name == "" {
			return nil, errors.New("AppArmor profile of type Localhost: localhost_ref is required")
		}
		return &runtimeapi.SecurityProfile{ProfileType: p.ProfileType, LocalhostRef: name}, nil
	}
	return nil, fmt.Errorf("AppArmor profile type %d is not known", p.ProfileType)
}

// called is how errors name a profile.
func called(p *runtimeapi.SecurityProfile) string {
	if p.ProfileType == runtimeapi.SecurityProfile_Localhost {
		return strconv.Quote(p.LocalhostRef)
	}
	return p.ProfileType.String()
}

// namedProfile reads the older way.
func namedProfile(text string) (*runtimeapi.SecurityProfile, error) {
	name, local := strings.CutPrefix(text, localhostPrefix)
	switch {
	case text == "":
		return nil, nil
	case text == appArmorDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case text == appArmorUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case local:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}, nil
	}
	return nil, fmt.Errorf("apparmor_profile %q: neither %s nor %s, nor %s with a profile's name", text, appArmorDefault, appArmorUnconfined, localhostPrefix)
}
