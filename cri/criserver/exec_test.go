package criserver

import "testing"

func TestCut(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ a, b, most, x, y int }{
		{3, 4, 10, 3, 4}, {30, 4, 10, 6, 4}, {3, 40, 10, 3, 7}, {30, 40, 10, 5, 5}, {0, 11, 10, 0, 10}, {11, 0, 10, 10, 0}, {5, 5, 10, 5, 5},
	} {
		if x, y := cut(make([]byte, c.a), make([]byte, c.b), c.most); len(x) != c.x || len(y) != c.y {
			t.Errorf("%d and %d of at most %d: %d and %d, want %d and %d", c.a, c.b, c.most, len(x), len(y), c.x, c.y)
		}
	}
}
