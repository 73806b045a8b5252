// Package users gives each pod with a user namespace of its own a range of the host's ids that no other pod has. It replaces
// upstream's user namespace manager.
//
// A pod's range is written down in its folder, as upstream writes it, and nowhere else: all its containers have the same, also
// after a restart of the kubelet, and it is free again when the folder is gone, which is when nothing of the pod runs any more.
package users

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PerPod is how many ids a pod gets unless the configuration says more: all that 16 bits can name.
const PerPod = 65536

// fileName is upstream's.
const fileName = "userns"

// IDs are those of the host's that pods get.
type IDs struct{ First, PerPod, Pods uint32 }

// HostIDs returns the ids of the host's that pods get: those that subuid and subgid (files like /etc/subuid, which may be missing)
// give the user "kubelet", or the first beyond those of the host's own users.
func HostIDs(subuid, subgid string, perPod, pods uint32) (IDs, error) {
	uids, err := subIDs(subuid)
	if err != nil {
		return IDs{}, err
	}
	gids, err := subIDs(subgid)
	if err != nil {
		return IDs{}, err
	}
	ids := IDs{First: perPod, PerPod: perPod, Pods: pods}
	switch {
	case uids != gids:
		return ids, fmt.Errorf("%s and %s give the user kubelet different ids", subuid, subgid)
	case uids == [2]uint32{}:
	case uids[0] < PerPod || uids[0]%PerPod != 0 || uids[1]/perPod < pods:
		return ids, fmt.Errorf("%s gives the user kubelet the ids %d:%d: they must begin at a multiple of %d and be enough for %d pods", subuid, uids[0], uids[1], PerPod, pods)
	default:
		ids.First = uids[0]
	}
	if uint64(ids.First)+uint64(perPod)*uint64(pods) > 1<<32 {
		return ids, fmt.Errorf("there are no ids for %d pods with %d each", pods, perPod)
	}
	return ids, nil
}

// subIDs returns the first id and the number of ids of the user kubelet; 0 and 0 where nothing is said of it.
func subIDs(file string) (ids [2]uint32, err error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return ids, nil
	}
	if err != nil {
		return ids, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || f[0] != "kubelet" {
			continue
		}
		if ids != [2]uint32{} {
			return ids, fmt.Errorf("%s: more than one line for the user kubelet", file)
		}
		for i := range ids {
			n, err := strconv.ParseUint(f[1+i], 10, 32)
			if err != nil {
				return ids, fmt.Errorf("%s: %w", file, err)
			}
			ids[i] = uint32(n)
		}
	}
	return ids, nil
}

// Ranges are those of this node's pods. Its methods may be called from any goroutine.
type Ranges struct {
	ids IDs
	dir string // of the pods' folders

	mu   sync.Mutex
	next uint32 // where to look for a free range: one that was given back is not given again at once
}

// New returns the ranges of pods with their folders in dir.
func New(ids IDs, dir string) *Ranges { return &Ranges{ids: ids, dir: dir} }

// record is the file in a pod's folder.
type record struct {
	UIDs []mapping `json:"uidMappings"`
	GIDs []mapping `json:"gidMappings"`
}

type mapping struct {
	HostID      uint32 `json:"hostId"`
	ContainerID uint32 `json:"containerId"`
	Length      uint32 `json:"length"`
}

func (m mapping) overlaps(o mapping) bool {
	return uint64(m.HostID) < uint64(o.HostID)+uint64(o.Length) && uint64(o.HostID) < uint64(m.HostID)+uint64(m.Length)
}

// Of returns the user namespace of a pod, whose folder must be there. It gives the pod a range, unless it has one.
func (r *Ranges) Of(uid types.UID) (*runtimeapi.UserNamespace, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, err := r.read(string(uid))
	if have == nil && err == nil {
		have, err = r.give(string(uid))
	}
	if err != nil {
		return nil, fmt.Errorf("user namespace of pod %s: %w", uid, err)
	}
	out := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}
	for _, m := range have.UIDs {
		out.Uids = append(out.Uids, &runtimeapi.IDMapping{HostId: m.HostID, ContainerId: m.ContainerID, Length: m.Length})
	}
	for _, m := range have.GIDs {
		out.Gids = append(out.Gids, &runtimeapi.IDMapping{HostId: m.HostID, ContainerId: m.ContainerID, Length: m.Length})
	}
	return out, nil
}

// read returns a pod's record, nil where it has none.
func (r *Ranges) read(uid string) (*record, error) {
	path := filepath.Join(r.dir, uid, fileName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	have := new(record)
	if err := json.Unmarshal(b, have); err != nil || len(have.UIDs) == 0 || len(have.GIDs) == 0 {
		return nil, fmt.Errorf("%s is not a record of mappings: %w", path, errors.Join(err, errors.New("none are given")))
	}
	return have, nil
}

// give finds a range that no pod has. A record that cannot be read could be of any, so there is none then.
func (r *Ranges) give(uid string) (*record, error) {
	pods, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var taken []mapping
	for _, p := range pods {
		if !p.IsDir() {
			continue
		}
		have, err := r.read(p.Name())
		if err != nil {
			return nil, err
		}
		if have != nil {
			taken = append(append(taken, have.UIDs...), have.GIDs...)
		}
	}
	for range r.ids.Pods {
		own := mapping{HostID: r.ids.First + r.next%r.ids.Pods*r.ids.PerPod, Length: r.ids.PerPod}
		r.next++
		if slices.ContainsFunc(taken, own.overlaps) {
			continue
		}
		have := &record{UIDs: []mapping{own}, GIDs: []mapping{own}}
		return have, r.write(uid, have)
	}
	return nil, fmt.Errorf("all %d ranges of ids are in use", r.ids.Pods)
}

// write writes a record whole or not at all.
func (r *Ranges) write(uid string, have *record) error {
	b, err := json.Marshal(have)
	if err != nil {
		return err
	}
	path := filepath.Join(r.dir, uid, fileName)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
