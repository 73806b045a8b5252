package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/run"
)

// Lease elects a leader among processes by a Lease object, as upstream's components do, so that ours and theirs
// can stand for the same election. It implements run.Lease.
//
// A holder renews every Retry; one that could not for Renew gives up, before Duration has passed, when others may take over.
type Lease struct {
	Client   Client
	Key      api.Key // kube-system/kube-scheduler
	Identity string  // unique to this process

	Duration, Renew, Retry time.Duration // 15 s, 10 s and 2 s when zero
}

// errLost says that another process holds the lease now.
var errLost = errors.New("held by another process")

func (l *Lease) durations() (duration, renew, retry time.Duration) {
	pick := func(d, otherwise time.Duration) time.Duration {
		if d == 0 {
			return otherwise
		}
		return d
	}
	return pick(l.Duration, 15*time.Second), pick(l.Renew, 10*time.Second), pick(l.Retry, 2*time.Second)
}

// Hold waits until the lease is held. The context that it returns ends when the lease is lost or could not be renewed in
// time. release gives it back, so that the next leader need not wait for its end.
func (l *Lease) Hold(ctx context.Context) (context.Context, func(), error) {
	_, renew, retry := l.durations()
	seen := &observed{}
	for {
		err := l.acquire(ctx, seen)
		if err == nil {
			break
		}
		if err := run.Pause(ctx, retry); err != nil {
			return nil, nil, err
		}
	}
	held, lose := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for last := time.Now(); run.Pause(held, retry) == nil; {
			try, cancel := context.WithTimeout(held, renew)
			err := l.acquire(try, seen)
			cancel()
			switch {
			case err == nil:
				last = time.Now()
			case errors.Is(err, errLost) || time.Since(last) >= renew:
				lose(fmt.Errorf("lease %s: %w", l.Key, err))
				return
			}
		}
	}()
	release := func() {
		lose(nil)
		<-done
		l.giveBack(context.WithoutCancel(ctx))
	}
	return held, release, nil
}

// observed is when this process last saw the lease change, by its own clock: others' clocks are not trusted.
type observed struct {
	holder string
	renew  metav1.MicroTime
	at     time.Time
}

// acquire takes or renews the lease. errLost when somebody else holds it.
func (l *Lease) acquire(ctx context.Context, seen *observed) error {
	duration, _, _ := l.durations()
	now := metav1.NowMicro()
	seconds := int32(duration / time.Second)
	lease, err := Get[*coordinationv1.Lease](ctx, l.Client, l.Key)
	if apierrors.IsNotFound(err) {
		_, err = Create(ctx, l.Client, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: l.Key.Namespace, Name: l.Key.Name},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &l.Identity, LeaseDurationSeconds: &seconds,
				AcquireTime: &now, RenewTime: &now, LeaseTransitions: new(int32)},
		})
		return err
	}
	if err != nil {
		return err
	}
	holder := ptr.Deref(lease.Spec.HolderIdentity, "")
	if r := ptr.Deref(lease.Spec.RenewTime, metav1.MicroTime{}); holder != seen.holder || !r.Equal(&seen.renew) {
		*seen = observed{holder, r, time.Now()}
	}
	if holder != "" && holder != l.Identity && time.Since(seen.at) < duration {
		return errLost
	}
	// The update names the revision that was read: of two processes that try at once, one meets a conflict.
	_, err = Mutate(ctx, l.Client, lease, "", func(o *coordinationv1.Lease) {
		if holder != l.Identity {
			o.Spec.AcquireTime = &now
			transitions := ptr.Deref(o.Spec.LeaseTransitions, 0) + 1
			o.Spec.LeaseTransitions = &transitions
		}
		o.Spec.HolderIdentity, o.Spec.LeaseDurationSeconds, o.Spec.RenewTime = &l.Identity, &seconds, &now
	})
	return err
}

// giveBack empties the holder if it is this process. A failure costs the next leader some seconds, nothing else.
func (l *Lease) giveBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	lease, err := Get[*coordinationv1.Lease](ctx, l.Client, l.Key)
	if err != nil || ptr.Deref(lease.Spec.HolderIdentity, "") != l.Identity {
		return
	}
	_, _ = Mutate(ctx, l.Client, lease, "", func(o *coordinationv1.Lease) { o.Spec.HolderIdentity = new(string) })
}
