package fairness

import (
	"testing"
	"time"
)

// Who is refused again and again is told to wait longer, up to a bound, and less again when fewer come.
func TestDrops(t *testing.T) {
	t.Parallel()
	var d drops
	second := int64(1_800_000_000)
	tell := func(n int) (after int) {
		for range n {
			after = d.refuse(time.Unix(second, 0))
		}
		second++
		return after
	}
	for i, tt := range []struct{ refused, want int }{
		{3, 1},   // the first
		{3, 2},   // three in one second
		{3, 2},   // raised just now
		{3, 4},   // six in two seconds
		{12, 4},  // not again at once
		{12, 4},  //
		{12, 4},  //
		{12, 8},  // four seconds later
		{0, 8},   // who is not refused is told nothing
		{1, 8},   //
		{100, 8}, //
	} {
		if got := tell(tt.refused); tt.refused > 0 && got != tt.want {
			t.Errorf("second %d: %d refusals are told to wait %d s, not %d", i, tt.refused, got, tt.want)
		}
	}
	for range 200 {
		tell(200)
	}
	if got := tell(1); got != longest {
		t.Errorf("at most: %d s", got)
	}
	for range 5 {
		second += 60
		tell(1)
	}
	if got := tell(1); got != longest-6 {
		t.Errorf("after some quiet: %d s", got)
	}
}
