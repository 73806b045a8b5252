// Package campaign_test kills `yare runtime` and its shims over and over, and fills and empties a machine, while clients
// make, use and remove pods. What the clients know is compared with what the runtime says after each kill, and what the
// kernel and the disk hold with both.
//
// It has namespaces of its own for processes, mounts and the network. So everything in them is the campaign's, what is
// left can be told exactly, and it goes when a campaign breaks off:
//
//	go test ------ waits, then removes the cgroups
//	  `- init ---- process 1: starts the tests and reaps orphans
//	       `- tests
//	            `- yare runtime, killed and started again
//	                 `- shims and containers, which become init's children
package campaign_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	kills      = flag.Int("kills", 20, "how often TestServerKilled kills the server")
	firstCall  = flag.Int("first-call", 20, "the first system call that TestKilledAtEachCall kills the server before")
	lastCall   = flag.Int("last-call", 800, "and the last")
	callStride = flag.Int("call-stride", 97, "and from one to the next")
	shimKills  = flag.Int("shim-kills", 20, "how many shims TestShimKilled kills")
	within     = flag.Duration("within", 0, "the longest that a shim's death may take to be told; 0: it is not measured")
	many       = flag.Int("many", 30, "how many containers TestMany has at once")
	starts     = flag.Int("starts", 100, "how many containers TestInARow starts and removes")
	seed       = flag.Uint64("seed", 0, "of the random numbers; 0: a new one")
)

// The roles of this program, told by an environment variable.
const (
	roleVariable = "YARE_CAMPAIGN"
	roleInit     = "init"
	roleTests    = "tests"
)

// inside is what TestMain has prepared.
var inside struct {
	dir    string // all files
	cgroup string // of all pods, a path below each hierarchy's root
	yare   string // the program
	image  string // folder with the containers' program
}

func TestMain(m *testing.M) {
	flag.Parse()
	switch os.Getenv(roleVariable) {
	case roleInit:
		os.Exit(reap())
	case roleTests:
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	code, err := outside()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// outside builds what is needed, and runs the tests in the namespaces.
func outside() (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("a campaign needs root")
	}
	if err := removeDead(); err != nil {
		return 0, fmt.Errorf("remove what a campaign that was killed left: %w", err)
	}
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		return 0, err
	}
	lock, err := hold(dir)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.WriteFile(filepath.Join(dir, mark), nil, 0o600); err != nil {
		return 0, err
	}
	yare, err := filepath.Abs("../../bin/yare")
	if err != nil {
		return 0, err
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "image", "work"), "./work")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build work: %w\n%s", err, out)
	}
	group := "/" + filepath.Base(dir)
	defer func() { err = errors.Join(err, removeCgroups(group)) }()
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), roleVariable+"="+roleInit, "YARE_CAMPAIGN_DIR="+dir, "YARE_CAMPAIGN_PROGRAM="+yare)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var exit *exec.ExitError
	if err := c.Run(); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	} else if err != nil {
		return 0, err
	}
	return 0, nil
}

// dirPrefix begins the names of campaigns' folders and cgroups.
const dirPrefix = "yare-campaign-"

// removeDead removes the folders and cgroups of campaigns that are no more. Their namespaces have gone with them.
func removeDead() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	for _, dir := range dirs {
		if !isOurs(dir) {
			continue // somebody else's, or it has just gone, or come and is not locked yet
		}
		lock, e := hold(dir)
		if e != nil {
			continue // it lives
		}
		if e = removeCgroups("/" + filepath.Base(dir)); e == nil { // else the folder is kept to try again by
			e = os.RemoveAll(dir)
		}
		err = errors.Join(err, e, lock.Close())
	}
	return err
}

// mark is a file in each campaign's folder, from when it is locked: folders without it are not removed, whatever they are called.
const mark = ".yare-campaign"

// isOurs says that a campaign of this user has made the folder. Anybody can make one of such a name where all have their temporary files.
func isOurs(dir string) bool {
	var folder, file unix.Stat_t
	if unix.Lstat(dir, &folder) != nil || unix.Lstat(filepath.Join(dir, mark), &file) != nil {
		return false
	}
	return folder.Mode&unix.S_IFMT == unix.S_IFDIR && file.Mode&unix.S_IFMT == unix.S_IFREG &&
		int(folder.Uid) == os.Geteuid() && int(file.Uid) == os.Geteuid()
}

// hold locks a campaign's folder, if no living campaign holds it.
func hold(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// reap is process 1: it starts the tests, and reaps whoever is orphaned until they have ended.
func reap() int {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_PRIVATE | unix.MS_REC},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			fmt.Fprintf(os.Stderr, "mount %s: %v\n", m.target, err)
			return 1
		}
	}
	if err := os.Setenv(roleVariable, roleTests); err != nil {
		return 1
	}
	tests, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 1
		}
		if pid == tests {
			return max(status.ExitStatus(), 0) + int(max(status.Signal(), 0))
		}
	}
}

// prepare makes a network that a host has: a loopback, and a link with the default route.
func prepare() error {
	inside.dir, inside.yare = os.Getenv("YARE_CAMPAIGN_DIR"), os.Getenv("YARE_CAMPAIGN_PROGRAM")
	inside.cgroup, inside.image = "/"+filepath.Base(inside.dir), filepath.Join(inside.dir, "image")
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	out := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "outside"}, PeerName: "nowhere"}
	if err := netlink.LinkAdd(out); err != nil {
		return err
	}
	nowhere, err := netlink.LinkByName(out.PeerName)
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr("192.0.2.2/24")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(out, address), netlink.LinkSetUp(out), netlink.LinkSetUp(nowhere),
		netlink.RouteAdd(&netlink.Route{LinkIndex: out.Index, Gw: net.IPv4(192, 0, 2, 1)}))
}

// cgroups are a group's folders in all hierarchies, with all that are below it, the lowest first.
func cgroups(group string) (list []string, err error) {
	roots, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return nil, err
	}
	for _, root := range append(roots, "/sys/fs/cgroup") {
		err := filepath.WalkDir(filepath.Join(root, group), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				list = append([]string{p}, list...)
			}
			return nil // groups come and go while we walk
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

func removeCgroups(group string) error {
	list, err := cgroups(group)
	for _, dir := range list {
		if e := unix.Rmdir(dir); e != nil && e != unix.ENOENT { // a hierarchy may have two names
			err = errors.Join(err, &fs.PathError{Op: "rmdir", Path: dir, Err: e})
		}
	}
	return err
}
