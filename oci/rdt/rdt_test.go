package rdt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The tests are on a folder that stands for resctrl: in it a class of service has mon_groups from its beginning only if it is made so.

func root(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"schemata": "    L3:0=7ff;1=7ff\n    MB:0= 100;1= 100\n", "tasks": "", "info/last_cmd_status": "ok\n",
		"gold/schemata": "L3:0=0f0;1=01f\n    MB:0=  20;1=  70\n", "gold/tasks": "",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name), "mon_groups"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestGroups(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		rdt    specs.LinuxIntelRdt
		fails  string // what Create says
		tasks  string // where the process is then
		lines  string // what schemata has then
		remain bool   // the class is there after Remove
	}{
		{name: "own", rdt: specs.LinuxIntelRdt{}, tasks: "c1"},
		{name: "own with lines", rdt: specs.LinuxIntelRdt{MemBwSchema: "MB:0=50", L3CacheSchema: "L3:0=f", Schemata: []string{"L2:0=1"}}, tasks: "c1", lines: "L2:0=1\n"},
		{name: "default", rdt: specs.LinuxIntelRdt{ClosID: "/"}, tasks: ".", remain: true},
		{name: "theirs", rdt: specs.LinuxIntelRdt{ClosID: "gold"}, tasks: "gold", remain: true},
		{name: "theirs, as wanted", rdt: specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:1=1f;0=f0", MemBwSchema: "MB:1=70"}, tasks: "gold", remain: true},
		{name: "theirs, not as wanted", rdt: specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=f0;1=1e"}, fails: "gold has L3:0=f0;1=1f, not 1=1e", remain: true},
		{name: "not there", rdt: specs.LinuxIntelRdt{ClosID: "silver"}, fails: "there is no class of service silver"},
		{name: "not there, with lines", rdt: specs.LinuxIntelRdt{ClosID: "silver", MemBwSchema: "MB:0=50"}, tasks: "silver", lines: "MB:0=50\n", remain: true},
		{name: "monitored", rdt: specs.LinuxIntelRdt{ClosID: "gold", EnableMonitoring: true}, tasks: "gold/mon_groups/c1", remain: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := root(t)
			g, err := Of(dir, "c1", &c.rdt)
			if err != nil {
				t.Fatal(err)
			}
			err = g.Create()
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("got %v, want %q", err, c.fails)
				}
			} else if err != nil {
				t.Fatal(err)
			} else {
				for _, made := range []string{g.dir, g.monitor} { // resctrl has them at once
					if made != "" {
						if err := os.WriteFile(filepath.Join(made, "tasks"), nil, 0o644); err != nil {
							t.Error(err)
						}
					}
				}
				fds, err := g.Tasks(nil)
				if err != nil {
					t.Error(err)
				}
				for _, fd := range fds {
					if _, err := unix.Write(fd, []byte("0")); err != nil {
						t.Error(err)
					}
					unix.Close(fd)
				}
				if b, err := os.ReadFile(filepath.Join(dir, c.tasks, "tasks")); string(b) != "0" {
					t.Errorf("tasks %q, %v", b, err)
				}
				if b, err := os.ReadFile(filepath.Join(g.dir, "schemata")); c.lines != "" && string(b) != c.lines {
					t.Errorf("schemata %q, %v", b, err)
				}
			}
			for _, made := range []string{g.monitor, g.dir} { // resctrl's files go with their folder
				if made != "" && made != dir && (made == g.monitor || g.own) {
					_ = os.Remove(filepath.Join(made, "tasks"))
					_ = os.Remove(filepath.Join(made, "schemata"))
				}
			}
			for range 2 {
				if err := g.Remove(); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Stat(g.dir); (err == nil) != c.remain {
				t.Errorf("class of service: %v, to remain: %v", err, c.remain)
			}
			if _, err := os.Stat(g.monitor); g.monitor != "" && err == nil {
				t.Error("group of monitoring remains")
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]specs.LinuxIntelRdt{
		"closID":                  {ClosID: "../x"},
		"mon_groups":              {ClosID: "mon_groups"},
		"memBwSchema":             {MemBwSchema: "L3:0=1"},
		"not a line of schemata":  {Schemata: []string{"L3:0=1\nMB:0=1"}},
		"\"x\" is not a line":     {L3CacheSchema: "x"},
		"cannot have a group of ": {},
	} {
		if _, err := Of("/none", "info", &c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
