package cgroup

import "testing"

func TestParseCPUMax(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		quota  int64
		period uint64
	}{"50000 100000\n": {50000, 100000}, "max 20000\n": {-1, 20000}} {
		if quota, period, err := parseCPUMax(text); err != nil || quota != want.quota || period != want.period {
			t.Errorf("%q: %d %d, %v", text, quota, period, err)
		}
	}
	for _, text := range []string{"", "max", "x 1", "1 x"} {
		if _, _, err := parseCPUMax(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}
