package static

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestDecode(t *testing.T) {
	const good = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: a, image: x, resources: {limits: {cpu: 1}}, ports: [{containerPort: 1}]}]\n"
	p, err := Decode([]byte(good), "N1")
	if err != nil {
		t.Fatal(err)
	}
	c := p.Spec.Containers[0]
	for what, ok := range map[string]bool{
		"name":       p.Name == "web-n1" && p.Namespace == "default" && p.Spec.NodeName == "N1",
		"defaults":   p.Spec.RestartPolicy == corev1.RestartPolicyAlways && *p.Spec.TerminationGracePeriodSeconds == 30 && c.Ports[0].Protocol == corev1.ProtocolTCP,
		"pull":       c.ImagePullPolicy == corev1.PullAlways,
		"requests":   c.Resources.Requests.Cpu().MilliValue() == 1000,
		"source":     p.Annotations["kubernetes.io/config.source"] == "file" && p.Annotations["kubernetes.io/config.hash"] == string(p.UID),
		"toleration": p.Spec.Tolerations[0].Effect == corev1.TaintEffectNoExecute,
	} {
		if !ok {
			t.Errorf("%s: %v", what, p)
		}
	}
	whole, err := Decode([]byte(good+"  resources: {limits: {cpu: 2}}\n"), "N1")
	if err != nil || whole.Spec.Resources.Requests.Cpu().MilliValue() != 1000 {
		t.Error("what the pod requests as a whole:", whole.Spec.Resources, err)
	}
	same, err := Decode([]byte(good+"# a comment\n"), "N1")
	if err != nil || same.UID != p.UID {
		t.Error("a comment makes another pod", err)
	}
	other, err := Decode([]byte(good), "N2")
	if err != nil || other.UID == p.UID {
		t.Error("two nodes have the same pod", err)
	}
	for bad, want := range map[string]string{
		"":  "not a Pod",
		"[": "read manifest",
		strings.Replace(good, "kind: Pod", "kind: Service", 1):                                     "not a Pod",
		strings.Replace(good, "name: web", "name: W_b", 1):                                         "name default/W_b-n1",
		strings.Replace(good, "image: x,", "", 1):                                                  "image",
		strings.Replace(good, "image: x", "imag: x", 1):                                            "unknown field",
		good + "  serviceAccountName: s\n":                                                         "serviceAccountName",
		good + "  volumes: [{name: v, secret: {secretName: s}}]\n":                                 "volume v",
		good + "  volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]\n":                   "volume v",
		good + "  ephemeralContainers: [{name: e, image: x}]\n":                                    "ephemeralContainers",
		good + "  resourceClaims: [{name: e, resourceClaimName: x}]\n":                             "resourceClaims",
		"apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: []}\n":               "containers is empty",
		strings.Replace(good, "metadata: {name: web}", "metadata: {name: web, namespace: Bad}", 1): "name Bad/web-n1",
	} {
		if _, err := Decode([]byte(bad), "N1"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", bad, err, want)
		}
	}
}

// A file that is half written, or cannot be read, does not end its pod; one that is removed does.
func TestABrokenFileKeepsItsPod(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, "n", slog.New(slog.NewTextHandler(t.Output(), nil)))
	manifest := func(name string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec: {containers: [{name: a, image: x}]}\n"
	}
	put := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(names ...string) {
		t.Helper()
		pods, err := s.read()
		var got []string
		for _, p := range pods {
			got = append(got, p.Name)
		}
		if err != nil || !slices.Equal(got, names) {
			t.Errorf("%v, want %v: %v", got, names, err)
		}
	}
	put("a.yaml", manifest("a"))
	put("b.yaml", "kind: ")
	want("a-n")
	put("b.yaml", manifest("b"))
	want("a-n", "b-n")
	put("b.yaml", manifest("b")[:50])
	want("a-n", "b-n")
	want("a-n", "b-n")
	put("b.yaml", manifest("c"))
	want("a-n", "c-n")
	put("b.yaml", "")
	want("a-n", "c-n")
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	want("a-n")
	put("b.yaml", "")
	want("a-n")
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: x}]}\n"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = Decode(b, "n") })
}
