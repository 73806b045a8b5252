package apiserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	"k8s.io/client-go/dynamic"
	clientfeatures "k8s.io/client-go/features"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/yare-dev/yare/api"
)

// cborGates turn on what client-go has for CBOR.
type cborGates struct{}

func (cborGates) Enabled(f clientfeatures.Feature) bool {
	return f == clientfeatures.ClientsAllowCBOR || f == clientfeatures.ClientsPreferCBOR
}

// Upstream's client in CBOR creates, applies, lists and watches.
func TestCBOR(t *testing.T) {
	s := serve(t)
	clientfeatures.ReplaceFeatureGates(cborGates{})
	dyn, err := dynamic.NewForConfig(overTLS(t, s))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cms := dyn.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace("default")
	w, err := cms.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "a"}, "data": map[string]any{"k": "v"}}}
	if _, err := cms.Create(ctx, o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	o.SetName("b")
	if _, err := cms.Apply(ctx, "b", o, metav1.ApplyOptions{FieldManager: "m"}); err != nil {
		t.Fatal(err)
	}
	l, err := cms.List(ctx, metav1.ListOptions{})
	if err != nil || len(l.Items) != 2 || l.GetKind() != "ConfigMapList" || l.Items[1].GetName() != "b" || l.Items[1].GetManagedFields()[0].Manager != "m" {
		t.Fatal(l, err)
	}
	for _, name := range []string{"a", "b"} {
		if ev := <-w.ResultChan(); ev.Type != "ADDED" || ev.Object.(*unstructured.Unstructured).GetName() != name {
			t.Error(ev)
		}
	}
	if err := cms.Delete(ctx, "a", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Error(err)
	}
	// What the typed serializer reads is the object.
	r := do(t, s, "GET", "/api/v1/namespaces/default/configmaps/b", "", "Accept", "application/cbor")
	cm, _, err := cbor.NewSerializer(scheme.Scheme, scheme.Scheme).Decode(r.Body.Bytes(), nil, nil)
	if err != nil || cm.(*corev1.ConfigMap).Data["k"] != "v" || r.Header().Get("Content-Type") != "application/cbor" {
		t.Error(cm, err, r.Header())
	}
	// Unknown fields are told of, and refused where the client asks for that.
	o.Object["dta"] = "x"
	var b bytes.Buffer
	if err := cbor.NewSerializer(nil, nil).Encode(o, &b); err != nil {
		t.Fatal(err)
	}
	for query, code := range map[string]int{"": 201, "&fieldValidation=Ignore": 201, "&fieldValidation=Strict": 400} {
		o.SetName("c")
		r := do(t, s, "POST", "/api/v1/namespaces/default/configmaps?dryRun=All"+query, strings.Replace(b.String(), "abc", "c", 1), "Content-Type", "application/cbor")
		if r.Code != code && r.Code != 409 {
			t.Error(query, r.Code, r.Body)
		}
	}
}

// A watch over a WebSocket has one message an event: text in JSON, bytes in protobuf. It ends with its client.
func TestWatchOverWebSocket(t *testing.T) {
	s := serve(t)
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	create(t, s, "a")
	for _, media := range []string{"application/json", runtime.ContentTypeProtobuf} {
		c, err := websocket.NewConfig("ws"+strings.TrimPrefix(h.URL, "http")+"/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=20", h.URL)
		if err != nil {
			t.Fatal(err)
		}
		c.Header = http.Header{"X-User": {"admin"}, "Accept": {media}}
		ws, err := websocket.DialConfig(c)
		if err != nil {
			t.Fatal(err)
		}
		var ev metav1.WatchEvent
		if media == "application/json" {
			var text string
			if err := websocket.Message.Receive(ws, &text); err != nil || json.Unmarshal([]byte(text), &ev) != nil {
				t.Fatal(text, err)
			}
		} else {
			var b []byte
			if err := websocket.Message.Receive(ws, &b); err != nil || ev.Unmarshal(b) != nil {
				t.Fatal(b, err)
			}
		}
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(ev.Object.Raw, nil, nil)
		if err != nil || ev.Type != "ADDED" || o.(*corev1.ConfigMap).Name != "a" {
			t.Error(media, ev.Type, o, err)
		}
		if err := ws.Close(); err != nil {
			t.Error(err)
		}
	}
}

func create(t testing.TB, s http.Handler, name string) {
	t.Helper()
	if w := do(t, s, "POST", "/api/v1/namespaces/default/configmaps", `{"metadata":{"name":"`+name+`"}}`); w.Code != http.StatusCreated {
		t.Fatal(w.Code, w.Body)
	}
}

// What a well-formed watch cannot have is its first event, not the answer's status. Selections are of one watch only.
func TestWatchEvents(t *testing.T) {
	s := serve(t)
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	create(t, s, "a")
	for _, tt := range []struct{ name, query, want string }{
		{"the future", "resourceVersion=9999", `"reason":"Timeout"`},
		{"existing objects", "", `{"type":"ADDED","object":{"kind":"ConfigMap"`},
		{"from 0", "resourceVersion=0", `{"type":"ADDED","object":{"kind":"ConfigMap"`},
		{"as metadata", "resourceVersion=0&as", `{"type":"ADDED","object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"a"`},
		{"stream of a list, nothing selected", "resourceVersionMatch=NotOlderThan&sendInitialEvents=true&allowWatchBookmarks=true&labelSelector=x", `"annotations":{"k8s.io/initial-events-end":"true"}`},
	} {
		accept := "application/json"
		if strings.HasSuffix(tt.query, "&as") {
			accept += ";as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
		}
		r, err := http.NewRequestWithContext(t.Context(), "GET", h.URL+"/api/v1/configmaps?watch=1&timeoutSeconds=4&"+strings.TrimSuffix(tt.query, "&as"), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", accept)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1<<10)
		n, err := io.ReadAtLeast(resp.Body, buf, 40)
		resp.Body.Close()
		if got := string(buf[:n]); resp.StatusCode != http.StatusOK || err != nil || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %d %v %s", tt.name, resp.StatusCode, err, got)
		}
	}
}

// Every stored kind goes through CBOR, and upstream's serializer reads what we write.
func TestCBORRoundTrip(t *testing.T) {
	for _, k := range api.Stored() {
		o := k.New()
		o.SetName("a")
		o.SetLabels(map[string]string{"k": "v"})
		b, err := api.EncodeCBOR(o)
		if err != nil {
			t.Fatal(err)
		}
		back := k.New()
		if strict, err := api.DecodeCBOR(b, back); err != nil || strict != nil {
			t.Fatal(k, strict, err)
		}
		again, err := api.EncodeCBOR(back)
		if err != nil || !bytes.Equal(again, b) {
			t.Error(k, err)
		}
	}
}
