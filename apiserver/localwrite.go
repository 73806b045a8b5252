package apiserver

import (
	"context"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/audit"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
)

// write is a request that changes something.
type write struct {
	verb string
	kind *api.Kind
	key  api.Key
	sub  string
	sent api.Object // or, of a patch,
	text []byte
}

// localTries bounds how often a write asks for its turn, as client/remote's does.
const localTries = 10

// write does what every write over HTTP goes through as well, in that order: it is recorded, waits for its turn, is allowed, and
// done.
func (l *local) write(ctx context.Context, w write, do func(context.Context, *rest.Request) (api.Object, error)) (o api.Object, err error) {
	a, at, err := l.find(w.verb, w.kind, w.key, w.sub)
	if err != nil {
		return nil, err
	}
	if a.Custom() != nil && w.sent != nil && a.Body(w.sub) == a.Kind {
		w.sent.GetObjectKind().SetGroupVersionKind(w.kind.GVK())
		if _, err := a.Unknown(w.sent); err != nil { // dropped, as over HTTP where nobody asks to be told
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	ctx = authn.WithUser(ctx, l.user)
	record := l.s.deps.Audit.BeginLocal(l.manager, at, time.Now())
	if w.text != nil {
		record.SentText(w.text)
	} else if w.sent != nil && record != nil {
		kind := w.kind
		if w.sub == "scale" {
			kind = api.ScaleKind
		}
		w.sent.GetObjectKind().SetGroupVersionKind(kind.GVK()) // as over HTTP
		record.Sent(w.sent)
	}
	defer func() { answered(record, w.verb, o, err) }()
	leave, err := l.enter(ctx, at)
	if err != nil {
		return nil, err
	}
	defer leave()
	reason, _, err := l.s.decide(ctx, at)
	decided(record, reason, err)
	if err != nil {
		return nil, err
	}
	r := &rest.Request{Any: a, Key: w.key, Sub: w.sub, Manager: l.manager}
	if record != nil {
		r.Audit = record.Annotate
	}
	return do(ctx, r)
}

// answered completes the record of a write.
func answered(record *audit.Record, verb string, o api.Object, err error) {
	if record == nil {
		return
	}
	code := http.StatusOK
	switch {
	case err != nil:
		status := statusOf(err)
		code = int(status.Code)
		record.Failed(&status)
	case verb == "create":
		code = http.StatusCreated
	}
	if err == nil && o != nil && record.Answers() {
		if text, err := api.EncodeJSON(o); err == nil {
			record.Answered(text)
		}
	}
	record.Complete(code, nil)
}

// enter waits for the turn of a write. One that is refused a place tries again, as clients over HTTP do.
func (l *local) enter(ctx context.Context, at *authz.Attributes) (leave func(), err error) {
	fair := l.s.deps.Fairness
	if fair == nil {
		return func() {}, nil
	}
	for try := 1; ; try++ {
		ticket, refusal := fair.Enter(ctx, at, 1, time.Now())
		if refusal == "" {
			return ticket.Leave, nil
		}
		if try == localTries || run.Pause(ctx, time.Second) != nil {
			return nil, tooMany(ticket.After)
		}
	}
}
