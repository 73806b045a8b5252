package volume

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/csi"
	"github.com/yare-dev/yare/linux/durable"
)

// Disks is what volumes of CSI drivers need; the zero Disks has no driver.
type Disks struct {
	// Dir is where volumes are staged: <root>/plugins/kubernetes.io/csi.
	Dir string
	// Node is the Node's name.
	Node string
	// Boot tells this boot of the machine from others: mounts do not outlive it.
	Boot    string
	Drivers Drivers
	// Changed is called when InUse has changed.
	Changed func()
}

// Drivers are the CSI drivers of the node.
type Drivers interface {
	// Driver returns the driver of that name; the error says that there is none.
	Driver(name string) (csi.Node, error)
}

// recordFile is where a disk is written down.
const recordFile = "vol_data.json"

// disk is a CSI volume as one pod has it. It is written down before the driver hears of it, and stays so until all is undone: nothing else is
// needed for that, not the pod, nor the objects of the API. The names in the file are upstream's, as far as it has them.
type disk struct {
	Name       string `json:"specVolID"` // the PersistentVolume's, or the pod's for its own volume
	Handle     string `json:"volumeHandle"`
	Driver     string `json:"driverName"`
	Node       string `json:"nodeName"`
	Attachment string `json:"attachmentID"`
	Lifecycle  string `json:"volumeLifecycleMode"`

	Block bool `json:"block,omitempty"`
	// What upstream's files lack has to be assumed there: the two say that it is not so.
	Unattached bool `json:"unattached,omitempty"` // its driver needs no attaching
	Uncalled   bool `json:"uncalled,omitempty"`   // the driver was not asked to do anything yet
	// Published is the boot in which the pod's volume was made ready.
	Published string `json:"published,omitempty"`
	// Size is that of the PersistentVolume, in bytes, with which the node has the volume; 0 where it is not known.
	Size int64 `json:"size,omitempty"`
}

// attached says that the volume may be attached to this node for the pod. Upstream names an attachment for a pod's own volume too.
func (d *disk) attached() bool {
	return !d.Unattached && d.Attachment != "" && d.Lifecycle != string(storagev1.VolumeLifecycleEphemeral)
}

// held is a disk by the pod that has it.
type held struct {
	uid  types.UID
	name string
}

// staging is what is written down beside a staged volume.
type staging struct {
	Driver string `json:"driverName"`
	Handle string `json:"volumeHandle"`
	Name   string `json:"specVolID"`
	Block  bool   `json:"block,omitempty"`
	// Staged is the boot in which it was; empty while it is not known.
	Staged string `json:"staged,omitempty"`
}

// uniqueName is what Nodes call the volume.
func (d *disk) uniqueName() corev1.UniqueVolumeName {
	return claim.OnNode(d.Driver, d.Handle)
}

// ownHandle is that of a pod's own volume, by upstream's rule.
func ownHandle(uid types.UID, name string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(string(uid)+name)))
}

// diskDir is the pod's folder of the disk; its target is in it, but for a block volume.
func (v *Volumes) diskDir(uid types.UID, name string) string {
	return filepath.Join(v.PodDir(uid), "volumes", "kubernetes.io~csi", name)
}

// target is where the driver is asked to show the volume to the pod: a folder, or a device node.
func (v *Volumes) target(uid types.UID, d *disk) string {
	if d.Block {
		return filepath.Join(v.disks.Dir, "volumeDevices", "publish", d.Name, string(uid))
	}
	return filepath.Join(v.diskDir(uid, d.Name), "mount")
}

// staging returns where the volume is staged and where that is written down.
func (v *Volumes) staging(d *disk) (path, record string) {
	if d.Block {
		all := filepath.Join(v.disks.Dir, "volumeDevices")
		return filepath.Join(all, "staging", d.Name), filepath.Join(all, d.Name, "data", recordFile)
	}
	dir := filepath.Join(v.disks.Dir, d.Driver, fmt.Sprintf("%x", sha256.Sum256([]byte(d.Handle))))
	return filepath.Join(dir, "globalmount"), filepath.Join(dir, recordFile)
}

// known returns all disks that are written down, and why some cannot be read, which is tried each time: somebody may have mended it.
// Preconditions: v.mu is held.
func (v *Volumes) known() (all map[held]*disk, unread map[held]error, err error) {
	again := slices.Collect(maps.Keys(v.unread))
	if v.written == nil {
		files, err := filepath.Glob(filepath.Join(v.root, "*", "volumes", "kubernetes.io~csi", "*", recordFile))
		if err != nil {
			return nil, nil, err
		}
		for _, file := range files {
			dir := filepath.Dir(file)
			pod := filepath.Dir(filepath.Dir(filepath.Dir(dir)))
			again = append(again, held{types.UID(filepath.Base(pod)), filepath.Base(dir)})
		}
		v.written, v.unread = map[held]*disk{}, map[held]error{}
	}
	for _, h := range again {
		d := &disk{}
		err := readJSON(filepath.Join(v.diskDir(h.uid, h.name), recordFile), d)
		if err == nil {
			v.written[h] = d
		}
		if delete(v.unread, h); err != nil && !errors.Is(err, fs.ErrNotExist) {
			v.unread[h] = err
		}
	}
	return v.written, v.unread, nil
}

// disksOf returns the pod's disks, by name.
func (v *Volumes) disksOf(uid types.UID) ([]*disk, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	all, unread, err := v.known()
	var own []*disk
	for h, d := range all {
		if h.uid == uid {
			own = append(own, d)
		}
	}
	for h, unknown := range unread {
		if h.uid == uid {
			err = errors.Join(err, unknown)
		}
	}
	slices.SortFunc(own, func(a, b *disk) int { return strings.Compare(a.Name, b.Name) })
	return own, err
}

// Slow reports whether a driver has to be asked before the pod's volumes are down.
func (v *Volumes) Slow(uid types.UID) (bool, error) {
	disks, err := v.disksOf(uid)
	return len(disks) > 0, err
}

// diskOf returns what is written down of the pod's disk, nil when nothing is.
func (v *Volumes) diskOf(uid types.UID, name string) (*disk, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	all, unread, err := v.known()
	h := held{uid, name}
	return all[h], errors.Join(err, unread[h])
}

// others reports whether another pod has a disk that same says is the same as d. One that cannot be read may be, by its name.
func (v *Volumes) others(uid types.UID, d *disk, same func(*disk) bool) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	all, unread, err := v.known()
	for h, o := range all {
		if h.uid != uid && same(o) {
			return true, err
		}
	}
	for h, unknown := range unread {
		if h.uid != uid && h.name == d.Name {
			err = errors.Join(err, unknown)
		}
	}
	return false, err
}

// save writes the pod's disk down. It takes a copy.
func (v *Volumes) save(uid types.UID, d *disk) error {
	if err := writeJSON(filepath.Join(v.diskDir(uid, d.Name), recordFile), d); err != nil {
		return err
	}
	copied := *d
	return v.change(func(all map[held]*disk) { all[held{uid, d.Name}] = &copied })
}

// strike forgets a disk of which nothing is left.
func (v *Volumes) strike(uid types.UID, d *disk) error {
	if err := remove(filepath.Join(v.diskDir(uid, d.Name), recordFile)); err != nil {
		return err
	}
	err := v.change(func(all map[held]*disk) { delete(all, held{uid, d.Name}) })
	return errors.Join(err, remove(v.diskDir(uid, d.Name)))
}

// change changes what is known, as the files were, and tells who publishes InUse where that is another by it.
func (v *Volumes) change(f func(map[held]*disk)) error {
	v.mu.Lock()
	all, _, err := v.known()
	changed := false
	if err == nil {
		before := inUse(all)
		f(all)
		now := inUse(all)
		changed = !slices.Equal(before, now)
		v.keepReported(now)
	}
	v.mu.Unlock()
	if changed && v.disks.Changed != nil {
		v.disks.Changed()
	}
	return err
}

// InUse returns the volumes that are attached for pods of this node, or are to be: they must not be detached. A volume is in it before
// a driver of the node hears of it, until it is unstaged. With an error there may be more.
func (v *Volumes) InUse() ([]corev1.UniqueVolumeName, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	all, unread, err := v.known()
	return inUse(all), errors.Join(err, errors.Join(slices.Collect(maps.Values(unread))...))
}

func inUse(all map[held]*disk) (names []corev1.UniqueVolumeName) {
	for _, d := range all {
		if d.attached() && !slices.Contains(names, d.uniqueName()) {
			names = append(names, d.uniqueName())
		}
	}
	slices.Sort(names)
	return names
}

// Reported takes note that the Node has names as the volumes that are in use, by a write that was made after InUse returned them, or by none
// being needed. A volume is not touched before it is among them: whoever detaches looks at the Node.
func (v *Volumes) Reported(names []corev1.UniqueVolumeName) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, name := range names {
		v.reported[name] = true
	}
	v.keepReported(inUse(v.written))
}

// keepReported forgets those that are in use no longer: should they be so again, that has to be told again. Preconditions: v.mu is held.
func (v *Volumes) keepReported(now []corev1.UniqueVolumeName) {
	maps.DeleteFunc(v.reported, func(name corev1.UniqueVolumeName, _ bool) bool { return !slices.Contains(now, name) })
}

func (v *Volumes) isReported(name corev1.UniqueVolumeName) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.reported[name]
}

// undo takes the disk from the pod, and unstages it when no other pod of the node has it. It may be repeated after a failure at any point.
func (v *Volumes) undo(ctx context.Context, uid types.UID, d *disk) error {
	defer v.locks.lock(d.uniqueName())()
	if !d.Uncalled {
		n, err := v.driver(d.Driver)
		if err != nil {
			return err
		}
		if err := v.unpublish(ctx, n, uid, d); err != nil {
			return err
		}
		path, _ := v.staging(d)
		used, err := v.others(uid, d, func(o *disk) bool { p, _ := v.staging(o); return p == path && !o.Uncalled })
		if err != nil {
			return err
		}
		if !used {
			if err := v.unstage(ctx, n, d); err != nil {
				return err
			}
		}
	}
	return v.strike(uid, d)
}

func (v *Volumes) driver(name string) (csi.Node, error) {
	if v.disks.Drivers == nil {
		return nil, fmt.Errorf("driver name %s not found: this node has no CSI drivers", name)
	}
	return v.disks.Drivers.Driver(name)
}

// supports checks that the driver serves volumes of that life.
func supports(o *storagev1.CSIDriver, driver string, mode storagev1.VolumeLifecycleMode) error {
	modes := []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	if o != nil && len(o.Spec.VolumeLifecycleModes) > 0 {
		modes = o.Spec.VolumeLifecycleModes
	}
	if slices.Contains(modes, mode) {
		return nil
	}
	return fmt.Errorf("volume mode %q not supported by driver %s: the volumeLifecycleModes of its CSIDriver lack it", mode, driver)
}

func readJSON(file string, into any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("read %s: %w: remove it when nothing is mounted beside it", file, err)
	}
	return nil
}

// writeJSON replaces a file so that after a crash it is the old or the new one. It makes the file's folder.
func writeJSON(file string, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return err
	}
	return durable.Write(file, b, 0o600)
}

// remove removes a file or an empty folder, which need not be there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
