package registrar

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestShort(t *testing.T) {
	long := strings.Repeat("ä", MaxText)
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"no status":   {errors.New(long), long},
		"short":       {status.Error(codes.Internal, "why"), "rpc error: code = Internal desc = why"},
		"long":        {status.Error(codes.Aborted, long), "rpc error: code = Aborted desc = " + strings.Repeat("ä", (MaxText-3)/2) + "..."},
		"just enough": {status.Error(codes.Internal, strings.Repeat("x", MaxText)), "rpc error: code = Internal desc = " + strings.Repeat("x", MaxText)},
	} {
		if got := Short(tt.err); got.Error() != tt.want || !utf8.ValidString(got.Error()) || status.Code(got) != status.Code(tt.err) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
