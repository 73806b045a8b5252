package shim

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestOwnScore(t *testing.T) {
	t.Parallel()
	given := -997
	for name, c := range map[string]struct {
		given     *int
		inherited string
		want      *int
	}{
		"protected":         {nil, "-999", new(int)},
		"given":             {&given, "-999", &given},
		"nothing to take":   {nil, "0", nil},
		"more than nothing": {nil, "500", nil},
	} {
		p := &specs.Process{OOMScoreAdj: c.given}
		got := ownScore(p, c.inherited).OOMScoreAdj
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
		if p.OOMScoreAdj != c.given {
			t.Errorf("%s: the caller's was changed", name)
		}
	}
	if ownScore(nil, "-999") != nil {
		t.Error("a process was made")
	}
}

// TestBudget: what is kept of two streams is no more than the limit together, whoever of them has said it.
func TestBudget(t *testing.T) {
	t.Parallel()
	left := &budget{left: 10}
	out, errs := &limited{budget: left}, &limited{budget: left}
	for _, w := range []*limited{out, errs, out, errs} {
		if n, err := w.Write([]byte("1234")); n != 4 || err != nil {
			t.Error(n, err)
		}
	}
	if out.kept.String() != "123412" || errs.kept.String() != "1234" {
		t.Errorf("kept %q and %q", &out.kept, &errs.kept)
	}
}
