package oci

import (
	"errors"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux/netns"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/launch"
)

// HoldUsers makes a user namespace with the mappings, and a network, an IPC and a UTS namespace that belong to it, for containers
// to share: root of the user namespace has a say over those. They live as long as their files in dir: see [HeldNamespace].
func HoldUsers(dir string, uids, gids []specs.LinuxIDMapping) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	const flags = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	return launch.UserNamespaces(flags, compile.IDMap(uids), compile.IDMap(gids), func(proc string) error {
		for _, t := range held() {
			if err := netns.Pin(HeldNamespace(dir, t), proc+"/ns/"+filepath.Base(HeldNamespace(dir, t))); err != nil {
				return err
			}
		}
		return nil
	})
}

// held are the types of the namespaces that HoldUsers holds.
func held() []specs.LinuxNamespaceType {
	return []specs.LinuxNamespaceType{specs.UserNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace}
}

// HeldNamespace is the file that holds the namespace of a type. It is named as the kernel names them.
func HeldNamespace(dir string, t specs.LinuxNamespaceType) string {
	if t == specs.NetworkNamespace {
		t = "net"
	}
	return filepath.Join(dir, string(t))
}

// ReleaseUsers lets go of what HoldUsers has made, of all or of a part. It is no error that there is nothing.
func ReleaseUsers(dir string) error {
	var errs []error
	for _, t := range held() {
		errs = append(errs, netns.Delete(HeldNamespace(dir, t)))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
