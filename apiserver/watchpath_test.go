package apiserver_test

import (
	"net/http"
	"testing"
)

// The old form of a watch, /watch/ in the path, is for nothing but watching: no write gets through by it.
func TestWatchPathOnlyWatches(t *testing.T) {
	s := serve(t)
	const object = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"default"}}`
	user := []string{"X-User", "someone", "Content-Type", "application/json"}
	if w := do(t, s, http.MethodPost, "/api/v1/namespaces/default/configmaps", object, user...); w.Code != http.StatusCreated {
		t.Fatal(w.Code, w.Body)
	}
	for _, tt := range []struct{ method, path, body string }{
		{http.MethodDelete, "/configmaps/a", ""},
		{http.MethodDelete, "/configmaps", ""},
		{http.MethodPut, "/configmaps/a", object},
		{http.MethodPatch, "/configmaps/a", `{"data":{"a":"b"}}`},
		{http.MethodPost, "/configmaps", object},
	} {
		w := do(t, s, tt.method, "/api/v1/watch/namespaces/default"+tt.path, tt.body, user...)
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, w.Code, w.Body)
		}
	}
	if w := do(t, s, http.MethodGet, "/api/v1/namespaces/default/configmaps/a", "", user...); w.Code != http.StatusOK {
		t.Errorf("the object is gone: %d %s", w.Code, w.Body)
	}
}
