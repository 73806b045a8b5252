package image

import (
	"context"
	"errors"
	"io"
	"math"

	"golang.org/x/sys/unix"
)

// copyTree copies the directory from into the empty directory to, with owners,
// modes, times, links, devices and attributes. It is the archive writer and the
// archive reader end to end: what survives a layer survives a copy. Owners are
// seen through ids.
func copyTree(ctx context.Context, from, to string, ids idMaps) error {
	fd, err := unix.Open(to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := pack(ctx, from, w)
		w.CloseWithError(err)
		packed <- err
	}()
	a := newApplier(fd, Limits{Entries: math.MaxInt, Bytes: math.MaxInt64, Names: math.MaxInt64}, false)
	defer func() { a.tree.close() }()
	a.ids = ids
	err = a.apply(ctx, r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // the archive's padding
	}
	if err == nil {
		_, err = a.finish(ctx)
	}
	r.CloseWithError(err)
	return errors.Join(err, <-packed)
}

// idMaps are the owners' IDs of a user namespace; without any, the same as given.
type idMaps struct{ uids, gids []IDMap }

// unmapped is the ID inside of what is not mapped, as the kernel has it.
const unmapped = 65534

func (m idMaps) uid(id int) int { return mapID(m.uids, id) }
func (m idMaps) gid(id int) int { return mapID(m.gids, id) }

func mapID(ranges []IDMap, id int) int {
	if len(ranges) == 0 {
		return id
	}
	for _, r := range ranges {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return r.HostID + id - r.ContainerID
		}
	}
	if id == unmapped {
		return id
	}
	return mapID(ranges, unmapped)
}
