package link

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestDump(t *testing.T) {
	for _, tt := range []struct {
		name      string
		interrupt int // how many listings are interrupted
		then      error
		calls     int
		fails     bool
	}{
		{"quiet", 0, nil, 1, false},
		{"busy", 3, nil, 4, false},
		{"never quiet", 1000, nil, dumps, false},
		{"failing", 1, errors.New("no"), 2, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			got, err := Dump(func() ([]int, error) {
				if calls++; calls <= tt.interrupt {
					return []int{calls}, netlink.ErrDumpInterrupted
				}
				return []int{calls}, tt.then
			})
			if calls != tt.calls || (err != nil) != tt.fails || !tt.fails && len(got) != 1 {
				t.Errorf("%d calls, %v, %v", calls, got, err)
			}
		})
	}
}
