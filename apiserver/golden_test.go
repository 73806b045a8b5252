package apiserver_test

import (
	"bytes"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// what differs from run to run
var volatile = []struct {
	what *regexp.Regexp
	is   string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "TIME"},
}

// TestGolden runs the sessions in testdata/*.txt. A session is a series of requests to one server, each
//
//	METHOD path [| Header: value]...
//	body lines
//	----
//	the expected code, interesting headers and body
//
// with an empty line after. `go test -update` writes what the server answers.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			synctest.Test(t, func(t *testing.T) { got = session(t, string(want)) }) // where all happens in the same second
			if *update {
				if err := os.WriteFile(f, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs; got:\n%s", f, firstDifference(string(got), string(want)))
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			expected := "(end)"
			if i < len(w) {
				expected = w[i]
			}
			return fmt.Sprintf("line %d: %s\nwant: %s", i+1, g[i], expected)
		}
	}
	return "the file goes on"
}

// session replays the requests of a golden file and returns the file with the answers that came.
func session(t *testing.T, text string) []byte {
	s := serve(t)
	var out bytes.Buffer
	for _, block := range strings.Split(text, "\n\n") {
		block = strings.TrimSpace(block)
		if block == "" {
			continue
		}
		if strings.HasPrefix(block, "#") && !strings.Contains(block, "\n") {
			fmt.Fprintf(&out, "%s\n\n", block)
			continue
		}
		ask, _, _ := strings.Cut(block+"\n", "----\n")
		ask = strings.TrimSpace(ask)
		head, body, _ := strings.Cut(ask, "\n")
		for strings.HasPrefix(head, "#") {
			head, body, _ = strings.Cut(body, "\n")
		}
		parts := strings.Split(head, " | ")
		method, path, _ := strings.Cut(parts[0], " ")
		var header []string
		for _, p := range parts[1:] {
			k, v, _ := strings.Cut(p, ": ")
			header = append(header, k, v)
		}
		if body != "" && !strings.Contains(head, "Content-Type") {
			header = append(header, "Content-Type", "application/json")
		}
		fmt.Fprintf(&out, "%s\n----\n%s\n\n", ask, answer(do(t, s, method, path, body, header...)))
	}
	return out.Bytes()
}

func answer(w *httptest.ResponseRecorder) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s\n", w.Code, w.Header().Get("Content-Type"))
	for _, h := range []string{"Warning", "Retry-After"} {
		for _, v := range w.Header()[h] {
			fmt.Fprintf(&b, "%s: %s\n", h, v)
		}
	}
	body := strings.TrimSpace(w.Body.String())
	for _, v := range volatile {
		body = v.what.ReplaceAllString(body, v.is)
	}
	b.WriteString(strings.ReplaceAll(body, "\n\n", "\n"))
	return strings.TrimRight(b.String(), "\n")
}
