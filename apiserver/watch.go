package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// A watch without timeoutSeconds ends after a random time from watchLeast to twice that, so that clients spread.
const watchLeast = 30 * time.Minute

func (c *call) watching(r *rest.Request) error {
	if !r.Any.Stored() {
		return c.notAllowed()
	}
	f, err := c.negotiate(r, true)
	if err != nil {
		return err
	}
	if !f.encoding.streams() {
		return notAcceptable([]string{typeJSON + ";stream=watch", typeProtobuf + ";stream=watch", typeCBORSeq})
	}
	f.pretty = false
	o, sel, err := listOptions(c.r.URL.Query())
	if err != nil {
		return err
	}
	life := watchLeast + time.Duration(rand.Int64N(int64(watchLeast)))
	if o.TimeoutSeconds != nil && *o.TimeoutSeconds > 0 {
		life = time.Duration(*o.TimeoutSeconds) * time.Second
	}
	ctx, cancel := c.stream()
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, life)
	defer stop()
	q := rest.WatchOptions{Selection: sel, Version: o.ResourceVersion, Initial: o.SendInitialEvents, Bookmarks: o.AllowWatchBookmarks}
	q.Mark = q.Bookmarks && q.Initial != nil && *q.Initial
	out := &eventWriter{f: f, a: r.Any, told: c.s.meter.told.WithLabelValues(c.t.group, c.t.version, c.t.plural)}
	w, err := c.events(ctx, r, q)
	if err != nil {
		return err
	}
	if wsstream.IsWebSocketRequest(c.r) {
		c.begun()
		c.socket(ctx, w, out)
		return nil
	}
	if !q.Mark { // else there is something to send at once, which is the larger part of the work
		c.begun()
	}
	return c.follow(ctx, w, out)
}

// events is what a watch has to tell: a rest.Watch, or an error.
type events interface {
	Next(ctx context.Context) ([]rest.Event, error)
	Ready() []rest.Event
}

// refused is a watch that has nothing to tell but why.
type refused struct{ error }

// Next is part of events.
func (r refused) Next(context.Context) ([]rest.Event, error) { return nil, r.error }

// Ready is part of events.
func (r refused) Ready() []rest.Event { return nil }

// events begins the watch. That a revision is too old or too new is told as the first event, as upstream does: the
// request was well-formed.
func (c *call) events(ctx context.Context, r *rest.Request, q rest.WatchOptions) (events, error) {
	w, err := c.s.pipe.Watch(ctx, r, q)
	if apierrors.IsResourceExpired(err) || apierrors.IsTimeout(err) {
		return refused{err}, nil
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

// In a burst, events to one watcher gather between two writes, since a write costs more than all events that it carries; the
// first event is sent at once. They gather for pace, and longer the more watchers do the same: paceEach is what a write
// costs with all that it entails, so that writing takes a part of the machine that does not grow with their number.
const (
	pace     = 4 * time.Millisecond
	paceEach = 100 * time.Microsecond
	paceMost = 50 * time.Millisecond
)

// gather waits for what else there is to tell to a watcher that was written to at last.
func (s *Server) gather(ctx context.Context, last time.Time) error {
	others := time.Duration(s.gathering.Add(1) - 1)
	defer s.gathering.Add(-1)
	if wait := min(pace+others*paceEach, paceMost) - time.Since(last); wait > 0 {
		return run.Pause(ctx, wait)
	}
	return nil
}

// follow sends the watch's events until it ends. What can be sent at once is.
func (c *call) follow(ctx context.Context, w events, out *eventWriter) error {
	h := c.w.Header()
	h.Set("Content-Type", out.mediaType())
	c.w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(c.w)
	if err := flush.Flush(); err != nil {
		return nil
	}
	var last time.Time
	for {
		evs, err := w.Next(ctx)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, io.EOF) {
				return nil
			}
			out.error(err)
			if _, err := c.w.Write(out.buf); err != nil {
				return nil
			}
			return ignore(flush.Flush())
		}
		if c.tell(evs, out) != nil {
			return nil
		}
		if time.Since(last) < paceMost {
			if c.s.gather(ctx, last) != nil {
				return nil
			}
			if c.tell(w.Ready(), out) != nil {
				return nil
			}
		}
		err = together(c.r, func() error {
			if _, err := c.w.Write(out.buf); err != nil {
				return err
			}
			return flush.Flush()
		})
		if err != nil {
			return nil
		}
		c.begun()
		out.buf = out.buf[:0]
		if cap(out.buf) > 2*chunk {
			out.buf = nil
		}
		last = time.Now()
	}
}

// tell encodes events, and writes them where they are many. The error is that of a client that went away.
func (c *call) tell(evs []rest.Event, out *eventWriter) error {
	out.told.Add(float64(len(evs)))
	for _, ev := range evs {
		c.encode(out, ev)
		if len(out.buf) < chunk {
			continue
		}
		if _, err := c.w.Write(out.buf); err != nil {
			return err
		}
		out.buf = out.buf[:0]
	}
	return nil
}

// encode appends one event. One that cannot be encoded becomes an error for the client.
func (c *call) encode(out *eventWriter, ev rest.Event) {
	if err := out.event(ev); err != nil {
		c.s.deps.Log.Error("watch event not encoded", "path", c.r.URL.Path, "err", err)
		out.error(apierrors.NewInternalError(err))
	}
}

// socket sends the watch's events as messages of a WebSocket, one each, until the watch ends or the client does.
func (c *call) socket(ctx context.Context, w events, out *eventWriter) {
	out.bare = true
	c.w.Header().Set("Content-Type", out.mediaType())
	websocket.Handler(func(ws *websocket.Conn) {
		ctx, gone := context.WithCancel(ctx)
		var reading sync.WaitGroup
		reading.Go(func() { // nothing is expected of the client but its end
			_, _ = io.Copy(io.Discard, ws)
			gone()
		})
		defer reading.Wait()
		defer ws.Close()
		send := func() error {
			defer func() { out.buf = out.buf[:0] }()
			if out.f.encoding == asJSON {
				return websocket.Message.Send(ws, string(out.buf))
			}
			return websocket.Message.Send(ws, out.buf)
		}
		for {
			evs, err := w.Next(ctx)
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, io.EOF) {
					out.error(err)
					_ = ignore(send())
				}
				return
			}
			out.told.Add(float64(len(evs)))
			for _, ev := range evs {
				c.encode(out, ev)
				if send() != nil {
					return
				}
			}
		}
	}).ServeHTTP(connection{c.w}, c.r)
}

// connection hands over the connection below the server's own writers, which the WebSocket package does not look for.
type connection struct{ http.ResponseWriter }

func (h connection) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(h.ResponseWriter).Hijack()
}

// ignore drops the error of a client that went away: the stream is over either way.
func ignore(error) error { return nil }

// eventWriter makes the bytes of watch events. Those of objects are shared by all watchers.
type eventWriter struct {
	f    format
	a    rest.Any
	bare bool // messages have their own frames
	told prometheus.Counter
	buf  []byte
}

// mediaType is that of the whole stream.
func (w *eventWriter) mediaType() string {
	switch w.f.encoding {
	case asProtobuf:
		return typeProtobuf + ";stream=watch"
	case asCBOR:
		return typeCBORSeq
	}
	return typeJSON
}

func (w *eventWriter) event(ev rest.Event) error {
	e := ev.Entry
	if ev.Type == watch.Bookmark {
		e = &store.Entry{Object: ev.Bookmark(w.a.Kind)}
	}
	if w.f.shape == whole {
		b, err := w.f.entry(e, e.Bytes)
		if err != nil {
			return err
		}
		return w.raw(ev.Type, b)
	}
	o, err := w.f.one(w.a, e)
	if err != nil {
		return err
	}
	w.f.table.NoHeaders = true // columns are sent once
	return w.object(ev.Type, o)
}

func (w *eventWriter) object(t watch.EventType, o runtime.Object) error {
	b, err := w.f.encode(o)
	if err != nil {
		return err
	}
	return w.raw(t, b)
}

// error appends the event that ends a watch.
func (w *eventWriter) error(err error) {
	var st apierrors.APIStatus
	if !errors.As(err, &st) {
		st = apierrors.NewInternalError(err)
	}
	status := st.Status()
	status.Kind, status.APIVersion = "Status", "v1"
	if err := w.object(watch.Error, &status); err != nil {
		w.buf = w.buf[:0] // a Status always has both forms
	}
}

// raw appends an event around the encoded object: in JSON a line, in CBOR an item, in protobuf a length and a WatchEvent
// { 1: type, 2: RawExtension{ 1: object } }.
func (w *eventWriter) raw(t watch.EventType, object []byte) error {
	switch w.f.encoding {
	case asProtobuf:
		ext := 1 + uvarintLen(len(object)) + len(object)
		size := 1 + uvarintLen(len(t)) + len(t) + 1 + uvarintLen(ext) + ext
		if !w.bare {
			w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(size))
		}
		w.buf = binary.AppendUvarint(append(w.buf, tag1), uint64(len(t)))
		w.buf = append(w.buf, t...)
		w.buf = binary.AppendUvarint(append(w.buf, tag2), uint64(ext))
		w.buf = binary.AppendUvarint(append(w.buf, tag1), uint64(len(object)))
		w.buf = append(w.buf, object...)
		return nil
	case asCBOR:
		b, err := api.EncodeCBOREvent(string(t), object)
		w.buf = append(w.buf, b...)
		return err
	}
	w.buf = append(w.buf, `{"type":"`...)
	w.buf = append(w.buf, t...)
	w.buf = append(w.buf, `","object":`...)
	w.buf = append(w.buf, bytes.TrimSuffix(object, []byte("\n"))...)
	w.buf = append(w.buf, "}\n"...)
	return nil
}
