package apiserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// A watch without timeoutSeconds ends after a random time from watchLeast to twice that, so that clients spread.
const watchLeast = 30 * time.Minute

func (c *call) watching(r *rest.Request) error {
	if !r.Any.Stored() {
		return c.notAllowed(r.Any)
	}
	f, err := negotiate(c.r, true)
	if err != nil {
		return err
	}
	if f.encoding == asYAML {
		return notAcceptable()
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
	ctx, cancel := c.s.meter.stream(c.r.Context())
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, life)
	defer stop()
	q := rest.WatchOptions{Selection: sel, Version: o.ResourceVersion, Initial: o.SendInitialEvents, Bookmarks: o.AllowWatchBookmarks}
	q.Mark = q.Bookmarks && q.Initial != nil && *q.Initial
	w, err := c.s.pipe.Watch(ctx, r, q)
	if err != nil {
		return err
	}
	return c.stream(ctx, w, &eventWriter{f: f, a: r.Any, include: c.include(), headers: c.headers()})
}

// stream sends the watch's events until it ends. What can be sent at once is: the connection is flushed when there
// is nothing more to tell.
func (c *call) stream(ctx context.Context, w *rest.Watch, out *eventWriter) error {
	h := c.w.Header()
	h.Set("Content-Type", out.f.encoding.String()+out.streamParam())
	c.w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(c.w)
	if err := flush.Flush(); err != nil {
		return nil
	}
	for {
		events, err := w.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			out.error(err)
			if _, err := c.w.Write(out.buf); err != nil {
				return nil
			}
			return ignore(flush.Flush())
		}
		for _, ev := range events {
			if err := out.event(ev); err != nil {
				c.s.deps.Log.Error("watch event not encoded", "path", c.r.URL.Path, "err", err)
				out.error(apierrors.NewInternalError(err))
			}
			if len(out.buf) >= chunk {
				if _, err := c.w.Write(out.buf); err != nil {
					return nil
				}
				out.buf = out.buf[:0]
			}
		}
		if _, err := c.w.Write(out.buf); err != nil {
			return nil
		}
		out.buf = out.buf[:0]
		if cap(out.buf) > 2*chunk {
			out.buf = nil
		}
		if err := flush.Flush(); err != nil {
			return nil
		}
	}
}

// ignore drops the error of a client that went away: the stream is over either way.
func ignore(error) error { return nil }

// eventWriter makes the bytes of watch events. Those of objects are shared by all watchers.
type eventWriter struct {
	f       format
	a       rest.Any
	include metav1.IncludeObjectPolicy
	headers bool // whether the next Table has its columns
	buf     []byte
}

func (w *eventWriter) streamParam() string {
	if w.f.encoding == asProtobuf {
		return ";stream=watch"
	}
	return ""
}

func (w *eventWriter) event(ev rest.Event) error {
	if ev.Type == watch.Bookmark {
		return w.object(ev.Type, w.shaped(&store.Entry{Object: ev.Bookmark(w.a.Kind)}))
	}
	if w.f.shape == whole {
		b, err := w.f.entry(ev.Entry)
		if err != nil {
			return err
		}
		w.raw(ev.Type, b)
		return nil
	}
	return w.object(ev.Type, w.shaped(ev.Entry))
}

func (w *eventWriter) shaped(e *store.Entry) runtime.Object {
	switch w.f.shape {
	case table:
		t := w.a.Table([]*store.Entry{e}, w.include, w.headers)
		t.ResourceVersion = e.Object.GetResourceVersion()
		w.headers = false
		return t
	case metadataOnly:
		return rest.Metadata(e.Object)
	}
	return e.Object
}

func (w *eventWriter) object(t watch.EventType, o runtime.Object) error {
	b, err := w.f.encode(o)
	if err != nil {
		return err
	}
	w.raw(t, b)
	return nil
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

// raw appends an event around the encoded object: in JSON a line, in protobuf a length and a WatchEvent
// { 1: type, 2: RawExtension{ 1: object } }.
func (w *eventWriter) raw(t watch.EventType, object []byte) {
	if w.f.encoding != asProtobuf {
		w.buf = append(w.buf, `{"type":"`...)
		w.buf = append(w.buf, t...)
		w.buf = append(w.buf, `","object":`...)
		w.buf = append(w.buf, bytes.TrimSuffix(object, []byte("\n"))...)
		w.buf = append(w.buf, "}\n"...)
		return
	}
	ext := 1 + uvarintLen(len(object)) + len(object)
	size := 1 + uvarintLen(len(t)) + len(t) + 1 + uvarintLen(ext) + ext
	w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(size))
	w.buf = binary.AppendUvarint(append(w.buf, tag1), uint64(len(t)))
	w.buf = append(w.buf, t...)
	w.buf = binary.AppendUvarint(append(w.buf, tag2), uint64(ext))
	w.buf = binary.AppendUvarint(append(w.buf, tag1), uint64(len(object)))
	w.buf = append(w.buf, object...)
}
