package launch_test

import (
	"os"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/ocitest"
)

func TestUserNamespace(t *testing.T) {
	ocitest.Root(t)
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}}
	for range 20 { // also while other goroutines are at work
		fd, err := launch.UserNamespace(maps, maps)
		if err != nil {
			t.Fatal(err)
		}
		own, err := os.Readlink("/proc/self/ns/user")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err != nil || got == own {
			t.Errorf("got %s, %v", got, err)
		}
		unix.Close(fd)
	}
	if _, err := launch.UserNamespace([]syscall.SysProcIDMap{{Size: -1}}, nil); err == nil {
		t.Error("a wrong mapping was taken")
	}
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}
