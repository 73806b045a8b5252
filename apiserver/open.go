package apiserver

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// What anybody may send to a path of [Deps.Open]: so much, for so long, and so many at once. Somebody who proves nothing must not hold what others need.
const (
	openBody   = 64 << 10
	openTime   = 10 * time.Second
	openPlaces = 50
)

// open has h serve a request of which nobody knows who asks, with its body read.
func (c *call) open(h http.Handler) {
	if c.r.ContentLength == 0 {
		h.ServeHTTP(c.w, c.r)
		return
	}
	body, err := c.openBody()
	var long *http.MaxBytesError
	switch {
	case errors.Is(err, errBusy):
		http.Error(c.w, err.Error(), http.StatusServiceUnavailable)
	case errors.As(err, &long):
		http.Error(c.w, err.Error(), http.StatusRequestEntityTooLarge)
	case errors.Is(err, os.ErrDeadlineExceeded):
		http.Error(c.w, "the request took too long to come", http.StatusRequestTimeout)
	case err != nil:
		http.Error(c.w, err.Error(), http.StatusBadRequest)
	default:
		c.r.Body = io.NopCloser(bytes.NewReader(body))
		h.ServeHTTP(c.w, c.r)
	}
}

var errBusy = errors.New("too many requests: ask again soon")

func (c *call) openBody() ([]byte, error) {
	defer c.s.opens.served.Add(-1)
	if c.s.opens.served.Add(1) > c.s.opens.most {
		return nil, errBusy
	}
	deadline := http.NewResponseController(c.w)
	_ = ignore(deadline.SetReadDeadline(time.Now().Add(openTime)))
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, openBody))
	if err == nil { // else the end of the deadline would be the end of the request, however long it is worked on
		_ = ignore(deadline.SetReadDeadline(time.Time{}))
	}
	return b, err
}
