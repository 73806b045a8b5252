package cluster_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSettingsStay starts a cluster with settings: every next start has them, after a crash and after down --keep-data, until others are
// given, which a running cluster refuses.
func TestSettingsStay(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first, second := file("first.yaml", "name: settings\nmaxPods: 17\n"), file("second.yaml", "maxPods: 19\n")
	if out, err := (&cluster{t: t}).run(10*time.Second, bin.yare, "up", "--name", "settings", "--config", file("bad.yaml", "maxPod: 17")); err == nil ||
		!strings.Contains(out, `bad.yaml: unknown field "maxPod"`) {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := (&cluster{t: t}).run(10*time.Second, bin.yare, "up", "--name", "other", "--config", first); err == nil ||
		!strings.Contains(out, "name: settings, but --name says other") {
		t.Fatalf("%v: %s", err, out)
	}
	c := newCluster(t, "settings", "--config", first)
	pods := func(want string) {
		t.Helper()
		if got := c.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.capacity.pods}"); got != want {
			t.Errorf("the node takes %s pods, not %s", got, want)
		}
	}
	kill := func() {
		t.Helper()
		if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); c.status().Running; {
			if time.Now().After(end) {
				t.Fatal("the server does not end")
			}
		}
	}
	pods("17")
	if out := c.yare("config", "--name", c.name); !strings.Contains(out, "maxPods: 17") {
		t.Errorf("yare config: %s", out)
	}
	if out := c.up("--config", first); !strings.Contains(out, "already runs") {
		t.Error(out)
	}
	if out, err := c.run(time.Minute, bin.yare, "up", "--name", c.name, "--config", second); err == nil ||
		!strings.Contains(out, "runs with other settings") || !strings.Contains(out, "yare down --keep-data --name settings") {
		t.Errorf("%v: %s", err, out)
	}
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	kill()
	c.up()
	pods("17")
	kill()
	c.up("--config", second)
	pods("19")
	// Settings with which it does not start are not those of the next start.
	kill()
	third := file("third.yaml", "maxPods: 23\napiServer: {encryptionConfig: "+filepath.Join(dir, "absent")+"}\n")
	if out, err := c.run(time.Minute, bin.yare, "up", "--name", c.name, "--config", third); err == nil ||
		!strings.Contains(out, "keeps the settings of its last start: 'yare up --name settings' starts it with them") {
		t.Errorf("%v: %s", err, out)
	}
	c.up()
	pods("19")
	if out := c.yare("down", "--keep-data", "--name", c.name); !strings.Contains(out, "'yare up --name settings' resumes it") {
		t.Error(out)
	}
	c.up()
	pods("19")
	var all []struct{ Name string }
	out, err := c.run(time.Minute, bin.yare, "status", "--all", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &all)
	}
	if err != nil || len(all) == 0 {
		t.Errorf("status --all -o json: %v: %s", err, out)
	}
}
