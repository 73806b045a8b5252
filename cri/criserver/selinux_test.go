package criserver

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux/selinux"
)

func testLabels() *labels {
	return newLabels(selinux.Usual{
		Process: selinux.Context{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0"},
		File:    selinux.Context{User: "system_u", Role: "object_r", Type: "container_file_t", Level: "s0"},
	}, func(c selinux.Context) error {
		if c.Type == "unknown_t" {
			return errors.New("not known")
		}
		return nil
	})
}

func TestSELinuxContexts(t *testing.T) {
	t.Parallel()
	const level = "s0:c1,c2"
	for name, c := range map[string]struct {
		options    *runtimeapi.SELinuxOption
		privileged bool
		process    string
		file       string
	}{
		"nothing":    {nil, false, "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"},
		"level":      {&runtimeapi.SELinuxOption{Level: "s0:c7"}, false, "system_u:system_r:container_t:s0:c7", "system_u:object_r:container_file_t:s0:c7"},
		"type":       {&runtimeapi.SELinuxOption{Type: "spc_t"}, false, "system_u:system_r:spc_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"},
		"all":        {&runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s1"}, false, "u:r:t:s1", "u:object_r:container_file_t:s1"},
		"privileged": {nil, true, "", "system_u:object_r:container_file_t:s0:c1,c2"},
	} {
		got, err := testLabels().of(c.options, level, c.privileged)
		if err != nil || got.Process != c.process || got.File != c.file || got.FileContext.String() != c.file {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := testLabels().of(&runtimeapi.SELinuxOption{Type: "unknown_t"}, level, false); err == nil || !strings.Contains(err.Error(), "selinux_options, for processes") {
		t.Errorf("%v", err)
	}
	if got, err := (*labels)(nil).of(&runtimeapi.SELinuxOption{Type: "any_t"}, "", false); err != nil || got != (label{}) {
		t.Errorf("without SELinux: %+v, %v", got, err)
	}
}

// Levels are unique among the sandboxes that are there, unless pods ask for the same.
func TestSELinuxLevels(t *testing.T) {
	t.Parallel()
	l := testLabels()
	const many = 2000
	seen := map[string]bool{}
	for range many {
		level := l.take(nil)
		var a, b int
		if _, err := fmt.Sscanf(level, "s0:c%d,c%d", &a, &b); err != nil || a >= b || b >= categories || seen[level] {
			t.Fatalf("level %q, %v", level, err)
		}
		seen[level] = true
	}
	asked := &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
	for range 2 {
		if level := l.take(asked); level != asked.Level {
			t.Errorf("level %s, asked for %s", level, asked.Level)
		}
	}
	had := l.levels[asked.Level]
	l.free(asked.Level)
	if l.levels[asked.Level] != had-1 {
		t.Error("a level is free while a sandbox has it")
	}
	after := testLabels() // of the process that adopts them
	for level := range seen {
		after.keep(level)
	}
	for range many {
		if level := after.take(nil); seen[level] {
			t.Fatalf("level %s is two sandboxes'", level)
		}
	}
	for level := range seen {
		l.free(level)
	}
	for range had {
		l.free(asked.Level)
	}
	if len(l.levels) != 0 {
		t.Errorf("%d levels are left", len(l.levels))
	}
	plain := newLabels(selinux.Usual{}, nil) // a policy without levels
	if level := plain.take(nil); level != "" {
		t.Errorf("level %q", level)
	}
	none := (*labels)(nil)
	none.keep("s0")
	none.free(none.take(nil))
}

func TestSELinuxInSpec(t *testing.T) {
	t.Parallel()
	in := plainInput()
	in.Labels = label{Process: "p", File: "f"}
	s, err := containerSpec(in)
	if err != nil || s.Process.SelinuxLabel != "p" || s.Linux.MountLabel != "f" {
		t.Errorf("%v, %v", s, err)
	}
}
