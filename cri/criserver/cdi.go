package criserver

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// injectCDI changes the spec as the CDI files of the host say for the devices (https://github.com/cncf-tags/container-device-interface). The
// files are read anew for each container that asks for some: they are few, they change when a driver does, and nothing has to watch them.
func injectCDI(spec *specs.Spec, devices []*runtimeapi.CDIDevice, dirs []string) error {
	if len(devices) == 0 {
		return nil
	}
	if len(dirs) == 0 {
		dirs = cdi.DefaultSpecDirs
	}
	var names []string
	for _, d := range devices {
		names = append(names, d.GetName())
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return fmt.Errorf("read CDI files in %s: %w", strings.Join(dirs, ", "), err)
	}
	if _, err := cache.InjectDevices(spec, names...); err != nil {
		text := ""
		for path, errs := range cache.GetErrors() { // a file that cannot be read may be the one that has the device
			text += fmt.Sprintf("; %s: %v", path, errs)
		}
		return fmt.Errorf("CDI devices of files in %s: %w%s", strings.Join(dirs, ", "), err, text)
	}
	return nil
}
