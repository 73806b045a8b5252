package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"golang.org/x/sys/unix"
)

// space keeps the disk from running full under etcd, which cannot go on then.
//
//	free >= 2*min    reserve exists, writes are taken
//	free <  min      puts are refused (NOSPACE), deletes and reads work; until free >= 2*min
//	free <  min/2    the reserve is given up, so that deletes and a restart have something to write to
//
// The disk may be filled between two looks at it. What etcd has acknowledged is in its log, whose files have their room; the
// database gets room ahead of what is written to it.
type space struct {
	e       *Etcd
	dir     string
	reserve string
	min     int64
}

func (e *Etcd) space() *space {
	return &space{e: e, dir: e.c.DataDir, reserve: filepath.Join(e.c.DataDir, "reserve"), min: e.c.MinFree}
}

// free returns how many bytes can be written.
func (s *space) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", s.dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// low says that there is too little for a put. Where there is next to nothing it gives up the reserve at once, for what
// has been taken already.
func (s *space) low() bool {
	free, err := s.free()
	if err != nil || free >= s.min {
		return false
	}
	s.e.full.Store(true) // until the next check, which raises the alarm
	if free < s.min/2 {
		_ = s.release() // tried again, and told, by the next check
	}
	return true
}

// prepare makes or gives up the reserve before the member starts.
func (s *space) prepare() error {
	free, err := s.free()
	if err != nil {
		return err
	}
	if free < s.min/2 {
		return s.release()
	}
	if free >= 2*s.min {
		return s.allocate()
	}
	return nil
}

// allocate makes the reserve, of min bytes.
func (s *space) allocate() error {
	if st, err := os.Stat(s.reserve); err == nil && st.Size() >= s.min {
		return nil
	}
	f, err := os.OpenFile(s.reserve, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("reserve disk space: %w", err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, s.min); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return errors.Join(fmt.Errorf("reserve disk space: %w", err), s.release())
	}
	return nil
}

// ahead gives the database's file room for what it is, with its holes, and min/4 more: the member ends where a page that it has
// taken cannot be written.
func (s *space) ahead() error {
	f, err := os.OpenFile(filepath.Join(s.dir, "member", "snap", "db"), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("make room for the database: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("make room for the database: %w", err)
	}
	want := st.Size + s.min/4
	if st.Blocks*512 >= want {
		return nil
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, want); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("make room for the database: %w", err)
	}
	return nil
}

func (s *space) release() error {
	if err := os.Remove(s.reserve); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("give up the disk reserve: %w", err)
	}
	return nil
}

// watch raises and ends the alarm until ctx ends.
func (s *space) watch(ctx context.Context, srv *etcdserver.EtcdServer) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := s.check(ctx, srv); err != nil && ctx.Err() == nil {
			s.e.c.Log.Warn("checking disk space failed", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// outOfSpace are the members that have raised NOSPACE.
func outOfSpace(srv *etcdserver.EtcdServer) (ids []uint64) {
	for _, a := range srv.Alarms() {
		if a.Alarm == pb.AlarmType_NOSPACE {
			ids = append(ids, a.MemberID)
		}
	}
	return ids
}

func (s *space) check(ctx context.Context, srv *etcdserver.EtcdServer) error {
	free, err := s.free()
	if err != nil {
		return err
	}
	// By an earlier process too, whose reserve may have gone since. Another member's is that one's to end: until then etcd refuses puts.
	raised := slices.Contains(outOfSpace(srv), uint64(srv.MemberID()))
	if raised {
		s.e.full.Store(true)
	}
	fits := s.e.c.fits(srv.Backend().Size())
	switch {
	case !raised && free < 2*s.min && (free < s.min || s.e.full.Load()):
		s.e.full.Store(true)
		s.e.c.Log.Error("disk is nearly full, refusing writes", "dir", s.dir, "free", free)
		err = alarm(ctx, srv, true)
	case free >= 2*s.min && fits && (raised || s.e.full.Load()):
		if err = alarm(ctx, srv, false); err == nil {
			s.e.full.Store(false)
			s.e.c.Log.Info("there is space again, taking writes", "dir", s.dir, "free", free)
		}
	}
	if free < s.min/2 {
		return errors.Join(err, s.release())
	}
	if free >= 2*s.min {
		err = errors.Join(err, s.ahead())
	}
	if free >= 4*s.min {
		return errors.Join(err, s.allocate())
	}
	return err
}
