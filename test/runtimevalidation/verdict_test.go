package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		err  error
		want outcome
	}{
		"all ok":               {"TAP version 13\nok 1 - a\nok 2 - b # SKIP not here\n1..2\n", nil, passed},
		"one not ok":           {"ok 1 - a\nnot ok 2 - b\n", nil, failed},
		"inside a log":         {"ok 1 - a\n  not ok 2 - b\n", nil, failed},
		"only skipped":         {"ok 1 # skip elsewhere\n", nil, skipped},
		"an error, unnumbered": {"  ---\n  {\n  \"error\": \"no\"\n  }\n1..0\n", nil, failed},
		"nothing to say":       {"failed to create, as expected\n1..0\n", nil, passed},
		"ok but exits badly":   {"ok 1 - a\n", errors.New("exit status 1"), failed},
	} {
		if got := read(tt.text, tt.err); got.outcome != tt.want || (got.outcome == failed) != (got.why != "") {
			t.Errorf("%s: got %+v, want %s", name, got, tt.want)
		}
	}
}

func TestJudge(t *testing.T) {
	good, bad := verdict{passed, ""}, verdict{failed, "no"}
	results := []result{
		{name: "both", ours: good, peer: good}, {name: "neither", ours: bad, peer: bad}, {name: "ours", ours: good, peer: bad},
		{name: "theirs", ours: bad, peer: good}, {name: "pidfile", ours: bad, peer: good}, {name: "before", ours: bad, peer: bad},
	}
	err := judge(results, []string{"before", "both"}, "runc")
	if err == nil || err.Error() != "theirs passes for runc: no\nbefore has passed before: no" {
		t.Errorf("got %v", err)
	}
	if err := judge(results[:3], []string{"both"}, "runc"); err != nil {
		t.Error(err)
	}
}

func TestRetry(t *testing.T) {
	good, bad := verdict{passed, ""}, verdict{failed, "no"}
	results := []result{
		{name: "good", ours: good}, {name: "never", ours: bad}, {name: "slow", ours: bad}, {name: "broken", ours: bad},
		{name: "theirs", ours: bad, peer: good}, {name: "pidfile", ours: bad, peer: good},
	}
	ran := map[string]int{}
	ratchet := []string{"good", "slow", "broken"}
	retry(results, ratchet, "runc", func(name string) verdict {
		ran[name]++
		if name == "slow" && ran[name] == 2 {
			return good
		}
		return bad
	})
	if want := map[string]int{"slow": 2, "broken": tries, "theirs": tries}; !maps.Equal(ran, want) {
		t.Errorf("ran again %v, want %v", ran, want)
	}
	if err := judge(results, ratchet, "runc"); err == nil || err.Error() != "broken has passed before: no\ntheirs passes for runc: no" {
		t.Errorf("got %v", err)
	}
}

func TestAccept(t *testing.T) {
	module, cache := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(module, ratchetName), []byte("# head\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keep(cache, []result{{name: "a", ours: verdict{passed, ""}}, {name: "c", ours: verdict{failed, "x"}}}); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := accept(wish{module: module}, cache, &out); err != nil {
		t.Fatal(err)
	}
	got, err := readLines(filepath.Join(module, ratchetName))
	if err != nil || strings.Join(got, " ") != "a b" || out.String() != "1 new, 2 in all\n" {
		t.Errorf("got %v, %v, %q", got, err, out.String())
	}
}
