package criserver

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/image"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/launch"
)

// A pod with a user namespace of its own has one for all its containers. It is made with the sandbox, together with the
// other namespaces that its root is to have a say over, and held by files in the sandbox's folder; the shim is not in it.
// The owners of an image's and of volumes' files are mapped by the kernel, mount by mount.

// ownUsers are the mappings of a sandbox's user namespace; nil where it has the host's.
func ownUsers(c *runtimeapi.PodSandboxConfig) *runtimeapi.UserNamespace {
	return ownUsersOf(namespaceOptions(c))
}

func ownUsersOf(o *runtimeapi.NamespaceOption) *runtimeapi.UserNamespace {
	if u := o.GetUsernsOptions(); u.GetMode() == runtimeapi.NamespaceMode_POD && u != nil {
		return u
	}
	return nil
}

// checkUsers says what is wrong with a sandbox's user namespace.
func checkUsers(o *runtimeapi.NamespaceOption) error {
	u := ownUsersOf(o)
	switch {
	case u == nil && o.GetUsernsOptions() != nil && o.GetUsernsOptions().Mode != runtimeapi.NamespaceMode_NODE:
		return errors.New("user namespace mode " + o.GetUsernsOptions().Mode.String() + " is not supported")
	case u == nil:
		return nil
	case o.GetNetwork() == runtimeapi.NamespaceMode_NODE || o.GetPid() == runtimeapi.NamespaceMode_NODE || o.GetIpc() == runtimeapi.NamespaceMode_NODE:
		return errors.New("a user namespace of its own goes with network, PID and IPC namespaces of its own")
	}
	for _, list := range [][]*runtimeapi.IDMapping{u.Uids, u.Gids} {
		if !slices.ContainsFunc(list, func(m *runtimeapi.IDMapping) bool { return m.ContainerId == 0 && m.Length > 0 }) {
			return errors.New("the user namespace's mappings must map 0")
		}
	}
	return nil
}

// sameUsers tells whether a container asks for its sandbox's user namespace.
func sameUsers(container, sandbox *runtimeapi.NamespaceOption) bool {
	c, s := ownUsersOf(container), ownUsersOf(sandbox)
	if c == nil || s == nil {
		return c == nil && s == nil
	}
	return sameMappings(c.Uids, c.Gids, s)
}

func sameMappings(uids, gids []*runtimeapi.IDMapping, u *runtimeapi.UserNamespace) bool {
	same := func(a, b *runtimeapi.IDMapping) bool {
		return a.ContainerId == b.ContainerId && a.HostId == b.HostId && a.Length == b.Length
	}
	return slices.EqualFunc(uids, u.GetUids(), same) && slices.EqualFunc(gids, u.GetGids(), same)
}

func idMappings(list []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, len(list))
	for i, m := range list {
		out[i] = specs.LinuxIDMapping{ContainerID: m.ContainerId, HostID: m.HostId, Size: m.Length}
	}
	return out
}

// hostRoot is what 0 of the user namespace is outside.
func hostRoot(list []*runtimeapi.IDMapping) uint32 {
	for _, m := range list {
		if m.ContainerId == 0 {
			return m.HostId
		}
	}
	return 0
}

// mapsMounts tries what a pod with a user namespace of its own needs: besides that one, a mount in memory that is mapped to it,
// which kernels can since 6.3.
func mapsMounts() bool {
	ids := compile.IDMap([]specs.LinuxIDMapping{{ContainerID: 0, HostID: 65536, Size: 65536}})
	users, err := launch.UserNamespace(ids, ids)
	if err != nil {
		return false
	}
	defer unix.Close(users)
	memory, err := linux.NewFS("tmpfs", "tmpfs", nil, 0)
	if err != nil {
		return false
	}
	defer unix.Close(memory)
	return linux.SetMountAttr(memory, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users)}, "tmpfs") == nil
}

// usersDir holds the namespaces of a sandbox with a user namespace of its own.
func (s *Server) usersDir(sandbox string) string { return filepath.Join(s.sandboxDir(sandbox), "ns") }

// mountImage mounts an image for a container of the sandbox, with the owners that are right there and the container's SELinux context.
func (s *Server) mountImage(ctx context.Context, sb *sandbox, img, key string, labels label, readOnly bool) (string, error) {
	o := image.MountOptions{ReadOnly: readOnly, Label: labels.File}
	if u := ownUsers(sb.config); u != nil {
		path := oci.HeldNamespace(s.usersDir(sb.id), specs.UserNamespace)
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", linux.Wrap("open", path, err)
		}
		defer unix.Close(fd)
		o.Users, o.UIDs, o.GIDs = fd, compile.IDMap(idMappings(u.Uids)), compile.IDMap(idMappings(u.Gids))
	}
	return s.images.MountWith(ctx, img, key, o)
}
