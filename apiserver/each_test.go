package apiserver

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/yare-dev/yare/apiserver/aggregator"
)

// TestEach has a panic about one server keep nothing from the others.
func TestEach(t *testing.T) {
	all := []*aggregator.Service{{}, {}, {}}
	all[0].Name, all[1].Name, all[2].Name = "a", "b", "c"
	got := each(slog.New(slog.NewTextHandler(t.Output(), nil)), all, func(svc *aggregator.Service) string {
		if svc.Name == "b" {
			panic("broken")
		}
		return svc.Name
	})
	if !slices.Equal(got, []string{"a", "", "c"}) {
		t.Errorf("%q", got)
	}
}
