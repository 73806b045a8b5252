package pki

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

const foreign = `apiVersion: v1
kind: Config
current-context: work
clusters:
- name: work
  cluster:
    server: https://work.example.org
    certificate-authority: certs/work.crt
contexts:
- name: work
  context: {cluster: work, user: me, namespace: mine}
users:
- name: me
  user:
    exec: {apiVersion: client.authentication.k8s.io/v1, command: login, interactiveMode: Never}
preferences: {}
`

func TestMergeAndRemove(t *testing.T) {
	t.Parallel()
	p := ensure(t, t.TempDir(), config())
	dir := t.TempDir()
	path := filepath.Join(dir, "config")
	if err := os.WriteFile(path, []byte(foreign), 0o640); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("config", link); err != nil {
		t.Fatal(err)
	}
	ours := p.Kubeconfig("yare", "https://127.0.0.1:6443", p.Admin)
	for range 2 {
		if err := MergeKubeconfig(t.Context(), link, ours); err != nil {
			t.Fatal(err)
		}
	}
	got, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.CurrentContext != "yare" || len(got.Contexts) != 2 || got.Clusters["work"].CertificateAuthority != "certs/work.crt" ||
		got.AuthInfos["me"].Exec.Command != "login" || got.Contexts["work"].Namespace != "mine" {
		t.Errorf("merged into %+v", got)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", st.Mode())
	}
	if st, _ := os.Lstat(link); st.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	rest, err := clientcmd.NewDefaultClientConfig(*got, nil).ClientConfig()
	if err != nil || rest.Host != "https://127.0.0.1:6443" || len(rest.KeyData) == 0 {
		t.Errorf("unusable: %v %v", rest, err)
	}
	if err := RemoveContext(t.Context(), path, "yare"); err != nil {
		t.Fatal(err)
	}
	got, err = clientcmd.LoadFromFile(path)
	if err != nil || len(got.Contexts) != 1 || len(got.Clusters) != 1 || len(got.AuthInfos) != 1 || got.CurrentContext != "" {
		t.Errorf("after removal: %+v %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.lock")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestKubeconfigCorners(t *testing.T) {
	t.Parallel()
	p := ensure(t, t.TempDir(), config())
	ours := p.Kubeconfig("yare", "https://127.0.0.1:6443", p.Admin)
	dir := t.TempDir()
	absent := filepath.Join(dir, "deep", "config")
	if err := RemoveContext(t.Context(), absent, "yare"); err != nil {
		t.Errorf("remove from an absent file: %v", err)
	}
	if err := MergeKubeconfig(t.Context(), absent, ours); err != nil {
		t.Errorf("merge into an absent file: %v", err)
	}
	if st, err := os.Stat(absent); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("clusters: 7"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MergeKubeconfig(t.Context(), broken, ours); err == nil {
		t.Error("a file that cannot be read was overwritten")
	}
	own := filepath.Join(dir, "own")
	if err := WriteKubeconfig(own, ours); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MergeKubeconfig(t.Context(), own, ours); err == nil || !strings.Contains(err.Error(), "own.lock") {
		t.Errorf("a locked file: %v", err)
	}
}
