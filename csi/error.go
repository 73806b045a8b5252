package csi

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is a driver's refusal, or that it did not answer.
type Error struct {
	Driver, Call string
	Code         codes.Code
	Text         string // the driver's, without secrets
	Limit        time.Duration
}

// Error is in the words that a user of the volume needs.
func (e *Error) Error() string {
	text := fmt.Sprintf("driver %s: %s: %s: %s", e.Driver, e.Call, e.Code, e.Text)
	if mend := e.mend(); mend != "" {
		text += ": " + mend
	}
	return text
}

// mend says what to do about an error that is not about one volume.
func (e *Error) mend() string {
	switch e.Code {
	case codes.Unavailable:
		return "is the driver running on this node?"
	case codes.DeadlineExceeded:
		return fmt.Sprintf("it did not answer within %v; see the driver's log", e.Limit)
	case codes.Unimplemented:
		return "the driver says that it can do this, and cannot; ask its makers"
	case codes.Unauthenticated, codes.PermissionDenied:
		return "look at the Secrets that the volume names"
	}
	return ""
}

// Code of an error of this package; codes.OK for nil, codes.Unknown for others.
func Code(err error) codes.Code {
	var e *Error
	switch {
	case err == nil:
		return codes.OK
	case errors.As(err, &e):
		return e.Code
	}
	return codes.Unknown
}

// Infeasible reports whether a request that failed so cannot succeed as it is.
func Infeasible(err error) bool {
	return slices.Contains([]codes.Code{codes.InvalidArgument, codes.OutOfRange, codes.NotFound}, Code(err))
}

// hidden stands in place of a secret.
const hidden = "***"

func newError(driver, call string, limit time.Duration, err error, values []string) error {
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	text := s.Message()
	slices.SortFunc(values, func(a, b string) int { return len(b) - len(a) }) // one may be part of another
	for _, v := range values {
		text = strings.ReplaceAll(text, v, hidden)
	}
	return &Error{Driver: driver, Call: call, Code: s.Code(), Text: text, Limit: limit}
}

// Tokens is where a volume's context, or its secrets, have the tokens of the pod's service account: a JSON object by audience.
const Tokens = "csi.storage.k8s.io/serviceAccount.tokens"

// secretsOf returns the secrets in a request: the values of its Secrets, and tokens wherever they are.
func secretsOf(request any) (values []string) {
	add := func(all map[string]string, whole bool) {
		for key, value := range all {
			if whole && value != "" {
				values = append(values, value)
			}
			if key != Tokens {
				continue
			}
			var tokens map[string]struct{ Token string }
			_ = json.Unmarshal([]byte(value), &tokens) // else there are none
			for _, t := range tokens {
				if t.Token != "" {
					values = append(values, t.Token)
				}
			}
		}
	}
	if r, ok := request.(interface{ GetSecrets() map[string]string }); ok {
		add(r.GetSecrets(), true)
	}
	if r, ok := request.(interface{ GetVolumeContext() map[string]string }); ok {
		add(r.GetVolumeContext(), false)
	}
	return values
}
