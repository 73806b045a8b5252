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
// archive reader end to end: what survives a layer survives a copy.
func copyTree(ctx context.Context, from, to string) error {
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
	_, err = apply(ctx, fd, r, Limits{Entries: math.MaxInt, Bytes: math.MaxInt64})
	if err == nil {
		_, err = io.Copy(io.Discard, r) // the archive's padding
	}
	r.CloseWithError(err)
	return errors.Join(err, <-packed)
}
