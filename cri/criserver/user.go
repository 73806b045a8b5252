package criserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux"
)

// maxAccounts bounds what is read of an image's passwd and group files, in
// bytes, and so the time and memory that a hostile image can cost.
const maxAccounts = 8 << 20

// user is who a container's first process runs as.
type user struct {
	UID, GID uint32
	// Groups are the supplementary ones, without GID.
	Groups []uint32
	Home   string
}

// accounts opens the image's passwd and group files; nil stands for a missing
// one.
type accounts func(name string) (io.ReadCloser, error)

// rootfsAccounts reads them inside a root file system, following no link out of
// it and waiting for no pipe.
func rootfsAccounts(rootfs string) accounts {
	return func(name string) (io.ReadCloser, error) {
		root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open root file system: %w", err)
		}
		defer unix.Close(root)
		fd, err := linux.OpenIn(root, name, unix.O_RDONLY|unix.O_NONBLOCK)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), name)
		if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
			f.Close()
			return nil, errors.Join(err, fmt.Errorf("%s in the image is no regular file", name))
		}
		return f, nil
	}
}

// resolveUser decides who to be: the pod's user and group if it names them, else
// the image's, else root. Names are looked up in the image.
func resolveUser(sc *runtimeapi.LinuxContainerSecurityContext, imageUser string, open accounts) (user, error) {
	who, group, _ := strings.Cut(imageUser, ":")
	switch {
	case sc.GetRunAsUser() != nil:
		who, group = strconv.FormatInt(sc.RunAsUser.Value, 10), ""
	case sc.GetRunAsUsername() != "":
		who, group = sc.RunAsUsername, ""
	}
	if g := sc.GetRunAsGroup(); g != nil {
		if sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
			return user{}, fmt.Errorf("group %d is asked for without a user", g.Value) // CRI: "the runtime MUST error"
		}
		group = strconv.FormatInt(g.Value, 10)
	}
	if who == "" {
		who = "0"
	}
	u, name, err := lookUser(who, open)
	if err != nil {
		return user{}, err
	}
	if group != "" {
		if u.GID, err = lookGroup(group, open); err != nil {
			return user{}, err
		}
	}
	if sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge && name != "" {
		if err := u.addMemberships(name, open); err != nil {
			return user{}, err
		}
	}
	for _, g := range sc.GetSupplementalGroups() {
		id, err := checkID("supplemental group", strconv.FormatInt(g, 10))
		if err != nil {
			return user{}, err
		}
		u.addGroup(id)
	}
	return u, nil
}

// checkID parses a user or group ID. The kernel's largest are not valid, and a
// number that does not fit must not become another (CVE-2024-40635).
func checkID(what, s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > 1<<31-1 {
		return 0, fmt.Errorf("%s %q is not between 0 and %d", what, s, 1<<31-1)
	}
	return uint32(n), nil
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == "" || strings.HasPrefix(s, "-")
}

// lookUser finds a user by name or number. A number without an account is fine:
// it has group 0 and no name.
func lookUser(who string, open accounts) (u user, name string, err error) {
	u.Home = "/"
	number := isNumber(who)
	if number {
		if u.UID, err = checkID("user", who); err != nil {
			return u, "", err
		}
		if u.UID == 0 {
			u.Home = "/root"
		}
	}
	found := false
	err = eachAccount("/etc/passwd", 7, open, func(f []string) (more bool, err error) {
		if (number && f[2] != who) || (!number && f[0] != who) {
			return true, nil
		}
		if u.UID, err = checkID("user", f[2]); err != nil {
			return false, err
		}
		if u.GID, err = checkID("group", f[3]); err != nil {
			return false, err
		}
		found, name = true, f[0]
		if strings.HasPrefix(f[5], "/") {
			u.Home = f[5]
		}
		return false, nil
	})
	switch {
	case err != nil:
		return u, "", fmt.Errorf("look up user %q: %w", who, err)
	case !found && !number:
		return u, "", fmt.Errorf("look up user %q: the image has no such user", who)
	}
	return u, name, nil
}

func lookGroup(group string, open accounts) (gid uint32, err error) {
	if isNumber(group) {
		return checkID("group", group)
	}
	found := false
	err = eachAccount("/etc/group", 4, open, func(f []string) (more bool, err error) {
		if f[0] == group {
			gid, err = checkID("group", f[2])
			found = true
		}
		return !found, err
	})
	if err == nil && !found {
		err = errors.New("the image has no such group")
	}
	if err != nil {
		return 0, fmt.Errorf("look up group %q: %w", group, err)
	}
	return gid, nil
}

// addMemberships adds the groups that list the user as a member.
func (u *user) addMemberships(name string, open accounts) error {
	return eachAccount("/etc/group", 4, open, func(f []string) (more bool, err error) {
		if !slices.Contains(strings.Split(f[3], ","), name) {
			return true, nil
		}
		gid, err := checkID("group", f[2])
		if err == nil {
			u.addGroup(gid)
		}
		return true, err
	})
}

func (u *user) addGroup(gid uint32) {
	if gid != u.GID && !slices.Contains(u.Groups, gid) {
		u.Groups = append(u.Groups, gid)
	}
}

// eachAccount calls f with the fields of each well-formed line of a file, until
// f wants no more or fails.
func eachAccount(file string, fields int, open accounts, f func([]string) (more bool, err error)) error {
	r, err := open(file)
	if err != nil || r == nil {
		return err
	}
	defer r.Close()
	lines := bufio.NewScanner(io.LimitReader(r, maxAccounts))
	lines.Buffer(make([]byte, 0, 4096), maxAccounts)
	for lines.Scan() {
		parts := strings.SplitN(lines.Text(), ":", fields)
		if len(parts) != fields {
			continue
		}
		if more, err := f(parts); err != nil || !more {
			return err
		}
	}
	return lines.Err()
}
