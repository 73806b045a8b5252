package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
)

func policy(t *testing.T, text string) (*Policy, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadPolicy(file)
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	p, err := policy(t, `
omitStages: [RequestReceived]
rules:
- {level: None, users: [system:kube-proxy], verbs: [watch]}
- {level: None, userGroups: [system:nodes]}
- {level: Request, resources: [{group: "", resources: [pods/log, pods/status]}]}
- {level: RequestResponse, resources: [{group: "", resources: [secrets], resourceNames: [x]}], omitStages: [Panic]}
- {level: Request, namespaces: [kube-system], resources: [{group: apps}, {group: "", resources: ["*/scale"]}]}
- {level: None, nonResourceURLs: [/healthz*, /version]}
- {level: Metadata, omitManagedFields: true, resources: [{group: ""}]}
- {level: Metadata, nonResourceURLs: ["*"]}`)
	if err != nil {
		t.Fatal(err)
	}
	u := func(name string, groups ...string) *authn.User { return &authn.User{Name: name, Groups: groups} }
	for what, tc := range map[string]struct {
		a    authz.Attributes
		want Level
	}{
		"proxy":             {authz.Attributes{User: u("system:kube-proxy"), Verb: "watch", Resource: "services"}, None},
		"proxy's get":       {authz.Attributes{User: u("system:kube-proxy"), Verb: "get", Resource: "services"}, Metadata},
		"node":              {authz.Attributes{User: u("n", "system:nodes"), Resource: "pods"}, None},
		"log":               {authz.Attributes{User: u("u"), Resource: "pods", Subresource: "log"}, Request},
		"pod":               {authz.Attributes{User: u("u"), Resource: "pods"}, Metadata},
		"the secret":        {authz.Attributes{User: u("u"), Resource: "secrets", Name: "x"}, RequestResponse},
		"another secret":    {authz.Attributes{User: u("u"), Resource: "secrets", Name: "y"}, Metadata},
		"apps of system":    {authz.Attributes{User: u("u"), Group: "apps", Resource: "deployments", Namespace: "kube-system"}, Request},
		"scale of system":   {authz.Attributes{User: u("u"), Resource: "replicationcontrollers", Subresource: "scale", Namespace: "kube-system"}, Request},
		"apps elsewhere":    {authz.Attributes{User: u("u"), Group: "apps", Resource: "deployments", Namespace: "default"}, None},
		"health":            {authz.Attributes{User: u("u"), Path: "/healthz/etcd"}, None},
		"version":           {authz.Attributes{User: u("u"), Path: "/version"}, None},
		"another plain one": {authz.Attributes{User: u("u"), Path: "/metrics"}, Metadata},
	} {
		if got := p.decide(&tc.a).level; got != tc.want {
			t.Errorf("%s: %s, want %s", what, got, tc.want)
		}
	}
	_, err = policy(t, `
omitStages: [Never]
rules:
- {level: All}
- {level: None, nonResourceURLs: [health, "/a*b"], resources: [{group: "", resourceNames: [x]}]}`)
	for _, want := range []string{"omitStages[0]: Invalid value", "rules[0].level: Unsupported value", "rules[1].nonResourceURLs[0]: Invalid value", "rules[1].nonResourceURLs[1]: Invalid value",
		"rules[1].nonResourceURLs: Invalid value", "rules[1].resources[0].resourceNames: Invalid value"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
}

// kept is a Backend in memory.
type kept struct{ lines []string }

func (*kept) Name() string { return "test" }

func (k *kept) Write(e *Event) error {
	c := *e
	c.AuditID, c.RequestReceivedTimestamp, c.StageTimestamp = "", metav1.MicroTime{}, metav1.MicroTime{}
	text, err := json.Marshal(c)
	k.lines = append(k.lines, string(text))
	return err
}

func TestRecord(t *testing.T) {
	t.Parallel()
	k := &kept{}
	l := &Log{policy: &Policy{OmitManagedFields: true, Rules: []Rule{{Level: RequestResponse}}}, backends: []Backend{k}, slog: slog.New(slog.DiscardHandler), meter: newMeter()}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/v1/namespaces/default/configmaps?dryRun=All", nil)
	r.Header.Set("X-Forwarded-For", "10.1.2.3, bad")
	r.Header.Set("Audit-Id", "mine")
	w := httptest.NewRecorder()
	a := &authz.Attributes{User: &authn.User{Name: "jane", Groups: []string{"g"}}, Verb: "create", Version: "v1", Resource: "configmaps", Namespace: "default"}
	rec := l.Begin(w, r, a, time.Now())
	if w.Header().Get("Audit-Id") != "mine" {
		t.Error("the client is not told the name")
	}
	rec.Impersonate(&authn.User{Name: "joe"})
	rec.Annotate("a", "b")
	rec.Annotate("a", "c")
	o := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "m", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "x"}}}}
	rec.Sent(o)
	rec.Answered([]byte(`{"kind":"List","items":[{"metadata":{"name":"m","managedFields":[]}}]}`))
	rec.Started(200)
	rec.Complete(201, nil)
	rec.Complete(500, "twice")
	const head = `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"RequestResponse","auditID":"","stage":%q,"requestURI":"/api/v1/namespaces/default/configmaps?dryRun=All","verb":"create",` +
		`"user":{"username":"jane","groups":["g"]},%s"sourceIPs":["10.1.2.3","192.0.2.1"],"objectRef":{"resource":"configmaps","namespace":"default",%s"apiVersion":"v1"}%s,"requestReceivedTimestamp":null,"stageTimestamp":null%s}`
	const joe, note = `"impersonatedUser":{"username":"joe"},`, `,"annotations":{"a":"b"}`
	const objects = `,"requestObject":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m"}},"responseObject":{"items":[{"metadata":{"name":"m"}}],"kind":"List"}`
	for i, want := range []string{
		fmt.Sprintf(head, "RequestReceived", "", "", "", ""),
		fmt.Sprintf(head, "ResponseStarted", joe, `"name":"m",`, `,"responseStatus":{"metadata":{},"code":200}`+objects, note),
		fmt.Sprintf(head, "ResponseComplete", joe, `"name":"m",`, `,"responseStatus":{"metadata":{},"code":201}`+objects, note),
	} {
		if i >= len(k.lines) || k.lines[i] != want {
			t.Errorf("%d:\ngot  %s\nwant %s", i, strings.Join(k.lines[min(i, len(k.lines)):], "\n     "), want)
		}
	}
	if len(k.lines) != 3 {
		t.Errorf("%d events", len(k.lines))
	}
	rec = l.Begin(w, r, a, time.Now())
	status := apierrors.NewNotFound(schema.GroupResource{Resource: "x"}, "y").Status()
	rec.Failed(&status)
	rec.Complete(404, nil)
	if got := k.lines[4]; !strings.Contains(got, `"responseStatus":{"metadata":{},"status":"Failure","message":"x \"y\" not found","reason":"NotFound"`) {
		t.Error(got)
	}
	var none *Log
	none.Begin(w, r, a, time.Now()).Complete(200, nil)
}

func TestFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newFile(FileConfig{Path: filepath.Join(dir, "log", "audit.log"), MaxSize: 1, MaxBackups: 2}, func() time.Time { return now })
	big := &Event{RequestURI: strings.Repeat("x", 400<<10)}
	for range 10 {
		if err := l.Write(big); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Minute)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	found, err := os.ReadDir(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range found {
		names = append(names, f.Name())
	}
	if got := fmt.Sprint(names); got != "[audit-2026-01-01T00-06-00.000.log audit-2026-01-01T00-08-00.000.log audit.log]" {
		t.Error(got)
	}
}

func TestBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var sizes []int
		b := newBatches(func(_ context.Context, o any) error {
			sizes = append(sizes, len(o.(*eventList).Items))
			return nil
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { b.run(ctx); close(done) }()
		for range batch + 1 {
			if err := b.Write(&Event{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		time.Sleep(batchWait + time.Second)
		if err := b.Write(&Event{}); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-done
		if got := fmt.Sprint(sizes); got != fmt.Sprintf("[%d 1 1]", batch) {
			t.Error(got)
		}
		for range queued {
			if err := b.Write(&Event{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Write(&Event{}); !errors.Is(err, errFull) {
			t.Errorf("a full queue took another: %v", err)
		}
	})
}
