package apiserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// goldenDir is upstream's own wire examples, in the module cache; empty where that cannot be found.
func goldenDir(t *testing.T) string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	if err != nil {
		t.Skip("no module cache:", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "testdata", "HEAD")
}

// Lists and watch events that are put together from shared bytes are read by upstream's codecs as what went in, for
// upstream's fullest example of every stored kind.
func TestGather(t *testing.T) {
	dir := goldenDir(t)
	all := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme} {
		if err := add(all); err != nil {
			t.Fatal(err)
		}
	}
	codecs := serializer.NewCodecFactory(all)
	for _, k := range api.Stored() {
		t.Run(k.String(), func(t *testing.T) {
			group := k.Group
			if group == "" {
				group = "core"
			}
			golden, text := example(t, filepath.Join(dir, group+"."+k.Version+"."+k.Kind), k)
			o, _, err := decode(asProtobuf, golden, k)
			if err != nil {
				t.Fatal(err)
			}
			var compact bytes.Buffer // what is embedded raw is kept as it is written
			if err := json.Compact(&compact, text); err != nil {
				t.Fatal(err)
			}
			fromJSON, strict, err := decode(asJSON, compact.Bytes(), k)
			if err != nil || len(strict) > 0 {
				t.Fatal(strict, err)
			}
			if d := cmp.Diff(o, fromJSON); d != "" {
				t.Error("JSON and protobuf differ:", d)
			}
			e := &store.Entry{Object: o, Key: api.KeyOf(o)}
			if b, err := e.Bytes(store.Protobuf); err != nil || !bytes.Equal(b, golden) {
				t.Error("protobuf is not upstream's", err)
			}
			one := int64(1)
			page := metav1.ListMeta{ResourceVersion: "7", Continue: "c", RemainingItemCount: &one}
			entries := []*store.Entry{e, e, e}
			for name, make := range map[string]func(*api.Kind, metav1.ListMeta, []*store.Entry) ([][]byte, error){"JSON": jsonList, "protobuf": protoList} {
				parts, err := make(k, page, entries)
				if err != nil {
					t.Fatal(err)
				}
				list, _, err := codecs.UniversalDeserializer().Decode(bytes.Join(parts, nil), nil, nil)
				if err != nil {
					t.Fatal(name, err)
				}
				check(t, k, o, list, name)
			}
			checkEvent(t, k, e, codecs)
		})
	}
}

// example is upstream's, or one of our own for the kinds of extension servers, which have none.
func example(t *testing.T, file string, k *api.Kind) (pb, text []byte) {
	t.Helper()
	var errs [2]error
	if pb, errs[0] = os.ReadFile(file + ".pb"); os.IsNotExist(errs[0]) && k.StoredJSON {
		o := k.New()
		o.SetName("a")
		o.SetLabels(map[string]string{"k": "v"})
		pb, errs[0] = api.EncodeProto(o)
		text, errs[1] = api.EncodeJSON(o)
	} else {
		text, errs[1] = os.ReadFile(file + ".json")
	}
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return pb, text
}

func check(t *testing.T, k *api.Kind, o api.Object, list runtime.Object, name string) {
	t.Helper()
	m, err := meta.ListAccessor(list)
	if err != nil || m.GetContinue() != "c" || m.GetResourceVersion() != "7" || *m.GetRemainingItemCount() != 1 {
		t.Error(name, m, err)
	}
	items, err := meta.ExtractList(list)
	if err != nil || len(items) != 3 {
		t.Fatal(name, len(items), err)
	}
	for _, item := range items {
		item.GetObjectKind().SetGroupVersionKind(k.GVK()) // items of lists do not carry it
		if d := cmp.Diff(runtime.Object(o), item); d != "" {
			t.Error(name, d)
		}
	}
}

// checkEvent reads back what a watcher in protobuf is sent.
func checkEvent(t *testing.T, k *api.Kind, e *store.Entry, codecs serializer.CodecFactory) {
	t.Helper()
	w := &eventWriter{f: format{encoding: asProtobuf}, a: rest.Any{Kind: k}}
	if err := w.event(rest.Event{Type: watch.Modified, Entry: e}); err != nil {
		t.Fatal(err)
	}
	var ev metav1.WatchEvent
	if err := ev.Unmarshal(w.buf[4:]); err != nil || ev.Type != "MODIFIED" {
		t.Fatal(ev.Type, err)
	}
	got, _, err := codecs.UniversalDeserializer().Decode(ev.Object.Raw, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got.GetObjectKind().SetGroupVersionKind(k.GVK())
	if d := cmp.Diff(runtime.Object(e.Object), got); d != "" {
		t.Error(d)
	}
}
