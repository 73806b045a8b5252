package devices

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/yare-dev/yare/linux/durable"
)

// What is on disk: the resources that plugins serve, and what pods were granted. The first changes seldom and is synced. The second is written
// for every pod with devices, on the way to its start, and needs to outlast the kubelet only: a rename is enough, since after a boot everything
// is allocated anew. It may be torn then, which the first file tells by its boot ID from a file that somebody has spoilt.
const (
	namesFile  = "device_resources.json"
	grantsFile = "device_allocations.json"
)

type names struct {
	Boot      string   `json:"boot"`
	Resources []string `json:"resources"`
}

type granted struct {
	Boot string                                     `json:"boot"`
	Pods map[types.UID]map[string]map[string]*grant `json:"pods"`
}

func (s *Set) path(name string) string { return filepath.Join(s.config.Root, name) }

// load reads both files. s.writing and s.mu are held.
func (s *Set) load() error {
	var n names
	if err := read(s.path(namesFile), &n); err != nil {
		return fmt.Errorf("read the resources of device plugins: %w; remove it, and the plugins make it anew", err)
	}
	for _, name := range n.Resources {
		s.stocks[name] = &stock{expected: true}
	}
	var g granted
	err := read(s.path(grantsFile), &g)
	if err == nil {
		err = g.decode()
	}
	switch {
	case err != nil && n.Boot == s.config.Boot:
		return fmt.Errorf("read which devices pods have: %w; when no pod with devices runs, remove it", err)
	case err != nil:
		s.log.Warn("which devices pods had before the host booted is not known: they get others", "err", err)
		g = granted{}
	}
	for uid, containers := range g.Pods {
		for _, held := range containers {
			for name, one := range held {
				s.use(name, one.IDs, uid)
			}
		}
		if g.Boot == s.config.Boot {
			s.grants[uid] = containers
		} else {
			s.former[uid] = formerly(containers)
		}
	}
	if len(n.Resources) > 0 && n.Boot != s.config.Boot {
		n.Boot = s.config.Boot
		return write(s.path(namesFile), n, true)
	}
	return nil
}

// formerly joins what the containers of a pod had.
func formerly(containers map[string]map[string]*grant) map[string][]string {
	out := map[string][]string{}
	for _, held := range containers {
		for name, one := range held {
			out[name] = append(out[name], one.IDs...)
		}
	}
	for name, ids := range out {
		slices.Sort(ids)
		out[name] = slices.Compact(ids)
	}
	return out
}

func (g *granted) decode() error {
	for uid, containers := range g.Pods {
		for container, held := range containers {
			for name, one := range held {
				if one == nil {
					return fmt.Errorf("pod %s, container %s: %s has no value", uid, container, name)
				}
				one.Response = &pluginapi.ContainerAllocateResponse{}
				if err := proto.Unmarshal(one.Encoded, one.Response); err != nil {
					return fmt.Errorf("pod %s, container %s: response of %s: %w", uid, container, name, err)
				}
			}
		}
	}
	return nil
}

func (s *Set) saveNames() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	n := names{Boot: s.config.Boot, Resources: slices.Sorted(maps.Keys(s.stocks))}
	s.mu.Unlock()
	return write(s.path(namesFile), n, true)
}

// saveGrants writes what pods were granted. What they had before the boot is no part of it once something is granted in this one: those pods
// get what is free. s.writing is held: it alone lets grants change.
func (s *Set) saveGrants() error {
	return write(s.path(grantsFile), granted{Boot: s.config.Boot, Pods: s.grants}, false)
}

// read reads a file into v, which stays as it is where there is none.
func read(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// write replaces a file, durably where it has to outlast the host.
func write(path string, v any, durably bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if durably {
		return durable.Write(path, b, 0o600)
	}
	return durable.Replace(path, b, 0o600)
}
