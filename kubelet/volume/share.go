package volume

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Share sees to it that what is mounted below dir, the kubelet's folder, by a driver in a container is seen by the host, and by other containers:
// on hosts whose file systems are private, dir becomes a mount of itself that is shared. It stays when the kubelet ends, as do pods' mounts.
func Share(dir string) error {
	shared, err := linux.Shared(dir)
	if err != nil || shared {
		return err
	}
	below, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if len(below) > 0 && below[0] != real {
		return fmt.Errorf("%s is on a private mount, and %s is mounted below it already: drivers in pods cannot mount volumes until the node's pods are "+
			"ended and the kubelet is started again", dir, below[0])
	}
	if len(below) == 0 {
		if err := unix.Mount(real, real, "", unix.MS_BIND, ""); err != nil {
			return &os.PathError{Op: "bind", Path: real, Err: err}
		}
	}
	if err := unix.Mount("", real, "", unix.MS_SHARED, ""); err != nil {
		return &os.PathError{Op: "share", Path: real, Err: err}
	}
	return nil
}
