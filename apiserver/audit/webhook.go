package audit

import (
	"context"
	"errors"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// hookTimeout bounds one request to the webhook.
	hookTimeout = 30 * time.Second
	// queued is how many events wait at most, batch how many are sent at once, batchWait how long the first of them waits.
	queued    = 10000
	batch     = 400
	batchWait = 30 * time.Second
	// lastWait is how long what is left may take when the server stops.
	lastWait = 2 * time.Second
)

// errFull is an event that the webhook is too slow for.
var errFull = errors.New("the queue of the webhook is full")

// eventList is audit.k8s.io/v1 EventList.
type eventList struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct{} `json:"metadata"`
	Items           []*Event `json:"items"`
}

// batches is the webhook backend.
type batches struct {
	post  func(ctx context.Context, list any) error
	queue chan *Event
	log   *slog.Logger
}

func newBatches(post func(ctx context.Context, list any) error, log *slog.Logger) *batches {
	return &batches{post, make(chan *Event, queued), log}
}

// Name implements Backend.
func (*batches) Name() string { return "webhook" }

// Write implements Backend: it never waits.
func (b *batches) Write(e *Event) error {
	select {
	case b.queue <- e:
		return nil
	default:
		return errFull
	}
}

// run sends until ctx ends, and then what is left.
func (b *batches) run(ctx context.Context) {
	for {
		var list []*Event
		select {
		case <-ctx.Done():
			b.rest(ctx)
			return
		case e := <-b.queue:
			list = append(list, e)
		}
		timer := time.NewTimer(batchWait)
	gather:
		for len(list) < batch {
			select {
			case e := <-b.queue:
				list = append(list, e)
			case <-timer.C:
				break gather
			case <-ctx.Done():
				break gather
			}
		}
		timer.Stop()
		b.send(ctx, list)
	}
}

func (b *batches) rest(ctx context.Context) {
	for {
		var list []*Event
		for len(list) < batch {
			select {
			case e := <-b.queue:
				list = append(list, e)
				continue
			default:
			}
			break
		}
		if len(list) == 0 {
			return
		}
		b.send(ctx, list)
	}
}

func (b *batches) send(ctx context.Context, list []*Event) {
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), lastWait)
		defer cancel()
	}
	l := &eventList{TypeMeta: metav1.TypeMeta{Kind: "EventList", APIVersion: "audit.k8s.io/v1"}, Items: list}
	if err := b.post(ctx, l); err != nil {
		b.log.Error("audit events lost", "backend", b.Name(), "events", len(list), "err", err)
	}
}
