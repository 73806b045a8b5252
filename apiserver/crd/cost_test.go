package crd_test

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// pemOf is a certificate as a caBundle in JSON has it.
func pemOf(der []byte) []byte {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return []byte(base64.StdEncoding.EncodeToString(text))
}

// mostPerDefinition is how many bytes a definition may cost that nobody uses.
const mostPerDefinition = 300 << 10

// Definitions cost little as long as nobody writes what they define, and the first write of one compiles that one alone.
func TestCost(t *testing.T) {
	const n = 30
	w := start(t)
	heap := func() uint64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	w.define(strings.ReplaceAll(cronTabs, "stable.example.com", "first.example.com")) // what all share
	before := heap()
	for i := range n {
		w.define(strings.ReplaceAll(cronTabs, "stable.example.com", fmt.Sprintf("g%d.example.com", i)))
	}
	each := (heap() - before) / n
	t.Logf("%d bytes for each definition", each)
	if each > mostPerDefinition {
		t.Errorf("%d bytes for each definition", each)
	}
	before = heap()
	const group = "g0.example.com"
	a := w.call("POST", strings.ReplaceAll(tabs, "stable.example.com", group), strings.ReplaceAll(tab("a", `{"cronSpec":"x"}`), "stable.example.com", group))
	if a.Code != http.StatusCreated {
		t.Fatal(a.Body)
	}
	t.Logf("%d bytes for the first write", int64(heap())-int64(before))
}
