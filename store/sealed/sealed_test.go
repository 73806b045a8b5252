package sealed

import (
	"bytes"
	"context"
	"crypto/aes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage/value"
	upstreamaes "k8s.io/apiserver/pkg/storage/value/encrypt/aes"
	upstreambox "k8s.io/apiserver/pkg/storage/value/encrypt/secretbox"
	kms "k8s.io/kms/apis/v2"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
	"github.com/yare-dev/yare/store/storetest"
)

func key(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }

const head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n"

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(head+text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// over returns a Backend by that configuration over b.
func over(t *testing.T, b store.Backend, text string) *Backend {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c.yaml")
	write(t, file, text)
	s, err := New(b, file, api.Stored(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func raw(t *testing.T, b store.Backend, key string) (string, bool) {
	t.Helper()
	kvs, _, _, err := b.Range(t.Context(), key, key+"\x00", 1, 0)
	if err != nil || len(kvs) != 1 {
		t.Fatalf("%v %v", kvs, err)
	}
	return string(kvs[0].Value), kvs[0].Stale != nil && kvs[0].Stale()
}

const secret = "/registry/secrets/ns/s"

// upstreams are upstream's own transformers with the key of ones.
func upstreams(t *testing.T) map[string]value.Transformer {
	t.Helper()
	b, err := aes.NewCipher(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := upstreamaes.NewGCMTransformer(b)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]value.Transformer{"aesgcm": gcm, "aescbc": upstreamaes.NewCBCTransformer(b), "secretbox": upstreambox.NewSecretboxTransformer([32]byte(bytes.Repeat([]byte{1}, 32)))}
}

// TestUpstream opens what we sealed with upstream's code, and the other way round.
func TestUpstream(t *testing.T) {
	t.Parallel()
	for name, theirs := range upstreams(t) {
		inner := memory.New(true)
		b := over(t, inner, fmt.Sprintf("resources: [{resources: [secrets], providers: [{%s: {keys: [{name: one, secret: %s}]}}]}]", name, key(1)))
		if _, err := b.Put(t.Context(), secret, []byte("hidden"), 0, 0); err != nil {
			t.Fatal(err)
		}
		text, _ := raw(t, inner, secret)
		prefix := "k8s:enc:" + name + ":v1:one:"
		if !strings.HasPrefix(text, prefix) || strings.Contains(text, "hidden") {
			t.Fatalf("%s: stored as %q", name, text)
		}
		if plain, _ := raw(t, b, secret); plain != "hidden" {
			t.Errorf("%s: read as %q", name, plain)
		}
		plain, _, err := theirs.TransformFromStorage(t.Context(), []byte(text[len(prefix):]), value.DefaultContext(secret))
		if err != nil || string(plain) != "hidden" {
			t.Errorf("%s: upstream reads %q, %v", name, plain, err)
		}
		sealed, err := theirs.TransformToStorage(t.Context(), []byte("theirs"), value.DefaultContext(secret+"2"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := inner.Put(t.Context(), secret+"2", append([]byte(prefix), sealed...), 0, 0); err != nil {
			t.Fatal(err)
		}
		if plain, stale := raw(t, b, secret+"2"); plain != "theirs" || stale {
			t.Errorf("%s: we read %q, stale %v", name, plain, stale)
		}
	}
	seed := bytes.Repeat([]byte{7}, 32)
	theirs, err := upstreamaes.NewHKDFExtendedNonceGCMTransformer(seed)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := derived{seed}.seal(t.Context(), secret, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, _, err := theirs.TransformFromStorage(t.Context(), ours, value.DefaultContext(secret)); err != nil || string(plain) != "x" {
		t.Errorf("a derived key: %q %v", plain, err)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	inner := memory.New(true)
	providers := func(list string) *Backend {
		return over(t, inner, "resources: [{resources: [secrets], providers: ["+list+"]}]")
	}
	put := func(b *Backend, name string) {
		if _, err := b.Put(t.Context(), secret+name, []byte(name), 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	put(providers("{identity: {}}"), "0")
	put(providers("{aescbc: {keys: [{name: a, secret: "+key(1)+"}]}}, {identity: {}}"), "1")
	last := providers("{secretbox: {keys: [{name: a, secret: " + key(2) + "}]}}, {aescbc: {keys: [{name: a, secret: " + key(1) + "}]}}, {identity: {}}")
	put(last, "2")
	for name, want := range map[string]bool{"0": true, "1": true, "2": false} {
		if plain, stale := raw(t, last, secret+name); plain != name || stale != want {
			t.Errorf("%s: %q, stale %v", name, plain, stale)
		}
	}
	// Without the key, or moved to another place, the text stays as it is: the Store says that it cannot be read.
	if text, _ := raw(t, providers("{identity: {}}"), secret+"1"); !strings.HasPrefix(text, "k8s:enc:") {
		t.Errorf("read without its key: %q", text)
	}
	gcm := providers("{aesgcm: {keys: [{name: a, secret: " + key(3) + "}]}}")
	put(gcm, "3")
	text, _ := raw(t, inner, secret+"3")
	if _, err := inner.Put(t.Context(), secret+"4", []byte(text), 0, 0); err != nil {
		t.Fatal(err)
	}
	if text, _ := raw(t, gcm, secret+"4"); text == "3" {
		t.Error("a value was moved to another key")
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	b := over(t, memory.New(true), fmt.Sprintf(`
resources:
- {resources: [events], providers: [{identity: {}}]}
- {resources: ["*.apps", widgets.example.org], providers: [{aescbc: {keys: [{name: a, secret: %[1]s}]}}]}
- {resources: ["*."], providers: [{aesgcm: {keys: [{name: b, secret: %[1]s}]}}]}`, key(1)))
	for path, want := range map[string]string{
		"/registry/events/ns/e": "", "/registry/deployments/ns/d": "k8s:enc:aescbc:v1:a:", "/registry/secrets/ns/s": "k8s:enc:aesgcm:v1:b:",
		"/registry/services/specs/ns/s": "k8s:enc:aesgcm:v1:b:", "/registry/jobs/ns/j": "none", "/registry/example.org/widgets/ns/w": "k8s:enc:aescbc:v1:a:", "/other": "none",
	} {
		got := "none"
		if ts := b.now.Load().transformers(path); len(ts) > 0 {
			got = ts[0].prefix
		}
		if got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	_, err := parse([]byte(head + `
resources:
- resources: [secrets, secrets, "*"]
  providers: [{aesgcm: {keys: [{name: a, secret: YWJj}, {name: a, secret: "!"}]}, identity: {}}, {kms: {apiVersion: v1, name: "a:b", endpoint: "tcp://x", cachesize: 1}}, {}]
- {resources: []}`))
	for _, want := range []string{`resources[0].resources[1]: Duplicate value: "secrets"`, `resources[0].resources[2]: Invalid value: "*"`, "providers[0].aesgcm.keys[0].secret: Invalid value", "providers[0].aesgcm.keys[1].name: Duplicate value",
		"providers[0]: Invalid value", "kms.apiVersion: Unsupported value", "kms.name: Invalid value", "kms.cachesize: Invalid value", "kms.endpoint: Invalid value", "providers[2]: Invalid value",
		"resources[1].resources: Required value", "resources[1].providers: Required value"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "YWJj") {
		t.Error("a key is in the error")
	}
}

// vault is a key management service that hides seeds by turning them around.
type vault struct {
	kms.UnimplementedKeyManagementServiceServer
	keyID atomic.Value
	asked atomic.Int32
	ill   atomic.Bool // it says so
	away  atomic.Bool // it opens nothing
}

func (v *vault) Status(context.Context, *kms.StatusRequest) (*kms.StatusResponse, error) {
	if v.ill.Load() {
		return &kms.StatusResponse{Version: "v2", Healthz: "on fire", KeyId: v.keyID.Load().(string)}, nil
	}
	return &kms.StatusResponse{Version: "v2", Healthz: "ok", KeyId: v.keyID.Load().(string)}, nil
}

func (v *vault) Encrypt(_ context.Context, r *kms.EncryptRequest) (*kms.EncryptResponse, error) {
	return &kms.EncryptResponse{Ciphertext: append([]byte("sealed"), r.Plaintext...), KeyId: v.keyID.Load().(string), Annotations: map[string][]byte{"a.example.org": []byte("b")}}, nil
}

func (v *vault) Decrypt(_ context.Context, r *kms.DecryptRequest) (*kms.DecryptResponse, error) {
	v.asked.Add(1)
	if v.away.Load() {
		return nil, status.Error(codes.Unavailable, "on fire")
	}
	plain, ok := bytes.CutPrefix(r.Ciphertext, []byte("sealed"))
	if !ok || string(r.Annotations["a.example.org"]) != "b" {
		return nil, errors.New("not mine")
	}
	return &kms.DecryptResponse{Plaintext: plain}, nil
}

// serveVault serves a vault whose key is k1 and returns it with its configuration.
func serveVault(t *testing.T) (v *vault, config string) {
	t.Helper()
	v = &vault{}
	v.keyID.Store("k1")
	socket := filepath.Join(t.TempDir(), "kms.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	kms.RegisterKeyManagementServiceServer(srv, v)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return v, "resources: [{resources: [secrets], providers: [{kms: {apiVersion: v2, name: vault, endpoint: 'unix://" + socket + "'}}, {identity: {}}]}]"
}

func TestKMS(t *testing.T) {
	t.Parallel()
	v, config := serveVault(t)
	inner := memory.New(true)
	fresh := func() *Backend { return over(t, inner, config) }
	b := fresh()
	for i := range 3 {
		if _, err := b.Put(t.Context(), fmt.Sprint(secret, i), []byte("hidden"), 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if text, _ := raw(t, inner, secret+"0"); !strings.HasPrefix(text, "k8s:enc:kms:v2:vault:") || strings.Contains(text, "hidden") {
		t.Errorf("stored as %q", text)
	}
	b = fresh() // as after a restart
	for i := range 3 {
		if plain, stale := raw(t, b, fmt.Sprint(secret, i)); plain != "hidden" || stale {
			t.Errorf("read %q, stale %v", plain, stale)
		}
	}
	if n := v.asked.Load(); n != 1 {
		t.Errorf("asked %d times for one seed", n)
	}
	v.keyID.Store("k2")
	if _, err := b.Put(t.Context(), secret+"3", []byte("x"), 0, 0); err != nil {
		t.Fatal(err)
	}
	if plain, stale := raw(t, b, secret+"0"); plain != "hidden" || !stale {
		t.Errorf("after another key: %q, stale %v", plain, stale)
	}
}

// What the file says counts when it has changed: what is written then, what is read, and what would be written otherwise now.
func TestChange(t *testing.T) {
	t.Parallel()
	v, config := serveVault(t)
	inner := memory.New(true)
	b := over(t, inner, "resources: [{resources: [secrets], providers: [{identity: {}}]}]")
	put := func(name string) {
		t.Helper()
		if _, err := b.Put(t.Context(), secret+name, []byte("hidden"), 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	put("0")
	kvs, _, _, err := b.Range(t.Context(), secret, secret+"~", 0, 0)
	if err != nil || len(kvs) != 1 || kvs[0].Stale == nil || kvs[0].Stale() {
		t.Fatalf("%+v %v", kvs, err)
	}
	v.ill.Store(true)
	if _, err := b.take(t.Context(), []byte(head+config)); err == nil {
		t.Error("rules are taken whose service is ill")
	}
	if _, err := b.take(t.Context(), []byte(head)); err == nil {
		t.Error("rules are taken that are wrong")
	}
	if kvs[0].Stale() || b.Well(t.Context()) != nil {
		t.Error("rules that were not taken changed something")
	}
	v.ill.Store(false)
	old, err := b.take(t.Context(), []byte(head+config))
	if err != nil {
		t.Fatal(err)
	}
	if err := old.close(); err != nil {
		t.Error(err)
	}
	if !kvs[0].Stale() {
		t.Error("what was read before is as it would be written now")
	}
	put("1")
	if text, _ := raw(t, inner, secret+"1"); !strings.HasPrefix(text, "k8s:enc:kms:v2:vault:") {
		t.Errorf("stored as %q", text)
	}
	for name, want := range map[string]bool{"0": true, "1": false} {
		if plain, stale := raw(t, b, secret+name); plain != "hidden" || stale != want {
			t.Errorf("%s: %q, stale %v", name, plain, stale)
		}
	}
}

// A service that is ill is told, asked again soon, and not asked for long when it is well.
func TestWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &vault{}
		v.keyID.Store("k1")
		asked := 0
		s := &service{timeout: time.Second, client: direct{v, &asked}}
		for _, step := range []struct {
			after time.Duration
			ill   bool
			want  bool
			asked int
		}{{0, false, true, 1}, {50 * time.Second, true, true, 1}, {20 * time.Second, true, false, 2}, {5 * time.Second, false, false, 2}, {10 * time.Second, false, true, 3}} {
			time.Sleep(step.after)
			v.ill.Store(step.ill)
			if err := s.probe(t.Context()); (err == nil) != step.want || asked != step.asked {
				t.Errorf("after %v: %v, asked %d times", step.after, err, asked)
			}
		}
	})
}

// direct calls a vault without a connection.
type direct struct {
	*vault
	statuses *int
}

func (d direct) Status(ctx context.Context, r *kms.StatusRequest, _ ...grpc.CallOption) (*kms.StatusResponse, error) {
	*d.statuses++
	return d.vault.Status(ctx, r)
}

func (d direct) Encrypt(ctx context.Context, r *kms.EncryptRequest, _ ...grpc.CallOption) (*kms.EncryptResponse, error) {
	return d.vault.Encrypt(ctx, r)
}

func (d direct) Decrypt(ctx context.Context, r *kms.DecryptRequest, _ ...grpc.CallOption) (*kms.DecryptResponse, error) {
	return d.vault.Decrypt(ctx, r)
}

// TestBackend holds the whole to what every Backend has to pass.
func TestBackend(t *testing.T) {
	t.Parallel()
	storetest.Backend(t, func(t *testing.T) store.Backend {
		return plain{over(t, memory.New(true), fmt.Sprintf("resources: [{resources: ['*.*'], providers: [{aesgcm: {keys: [{name: a, secret: %s}]}}]}]", key(1)))}
	})
}

// plain leaves out what other Backends do not say.
type plain struct{ *Backend }

func (p plain) Range(ctx context.Context, from, end string, limit int, at api.Revision) ([]store.KV, bool, api.Revision, error) {
	kvs, more, rev, err := p.Backend.Range(ctx, from, end, limit, at)
	for i := range kvs {
		kvs[i].Stale = nil
	}
	return kvs, more, rev, err
}

func (p plain) Watch(ctx context.Context, prefix string, from api.Revision, emit func(api.Revision, []store.Change) error) error {
	return p.Backend.Watch(ctx, prefix, from, func(rev api.Revision, changes []store.Change) error {
		for i := range changes {
			changes[i].Stale = nil
		}
		return emit(rev, changes)
	})
}

// TestStore reads objects after a restart, and tells those that it would write otherwise now.
func TestStore(t *testing.T) {
	t.Parallel()
	inner := memory.New(true)
	run := func(config string, f func(s *store.Store)) {
		s := store.New(over(t, inner, config), api.Stored(), store.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Keep: -1})
		ctx, cancel := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- s.Run(ctx, func() { close(ready) }) }()
		<-ready
		f(s)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	at := api.Key{Namespace: "ns", Name: "s"}
	old := fmt.Sprintf("{aescbc: {keys: [{name: a, secret: %s}]}}", key(1))
	run("resources: [{resources: [secrets], providers: ["+old+"]}]", func(s *store.Store) {
		e, err := s.Create(t.Context(), api.SecretKind, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{"a": []byte("b")}}, 0)
		if err != nil || e.Stale() {
			t.Errorf("%v, stale %v", err, e.Stale())
		}
	})
	run("resources: [{resources: [secrets], providers: [{aesgcm: {keys: [{name: b, secret: "+key(2)+"}]}}, "+old+"]}]", func(s *store.Store) {
		e := s.Snapshot(api.SecretKind).Get(at)
		if e == nil || e.Err() != nil || !e.Stale() || string(e.Object.(*corev1.Secret).Data["a"]) != "b" {
			t.Errorf("%+v", e)
		}
	})
	run("resources: [{resources: [secrets], providers: [{identity: {}}]}]", func(s *store.Store) {
		if e := s.Snapshot(api.SecretKind).Get(at); e == nil || e.Err() == nil {
			t.Errorf("read without a key: %+v", e)
		}
	})
}
