package registrar

import (
	"strings"

	"google.golang.org/grpc/status"
)

// MaxText bounds what programs that have registered add to statuses and Events, and the names that they give.
const MaxText = 1024

// Short is a program's error as gRPC shows it, of a length that an Event can bear.
func Short(err error) error {
	s, ok := status.FromError(err)
	if !ok || len(s.Message()) <= MaxText {
		return err
	}
	return status.Error(s.Code(), Cut(s.Message()))
}

// Cut is the text, of that length at most.
func Cut(text string) string {
	if len(text) <= MaxText {
		return text
	}
	return strings.ToValidUTF8(text[:MaxText-3], "") + "..."
}
