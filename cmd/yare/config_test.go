package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRuntimeHandlers reads the setting, and refuses what is wrong with it by file and field.
func TestRuntimeHandlers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"good":     {"crun: {path: /bin/sh}\n  gvisor: {path: /bin/sh, options: [\"--platform=systrap\"]}", ""},
		"missing":  {"crun: {path: /no/such/program}", "runtimeHandlers.crun.path: stat /no/such/program"},
		"relative": {"crun: {path: crun}", `runtimeHandlers.crun.path: "crun" is not an absolute path`},
		"no path":  {"crun: {}", `runtimeHandlers.crun.path: "" is not`},
		"no file":  {"crun: {path: /etc}", "runtimeHandlers.crun.path: /etc is not a program"},
		"name":     {"Crun: {path: /bin/sh}", "runtimeHandlers.Crun: not a name"},
		"ours":     {"yare: {path: /bin/sh}", "runtimeHandlers.yare: is the name of the built-in"},
		"option":   {"crun: {path: /bin/sh, options: [x]}", `runtimeHandlers.crun.options[0]: "x" is not an option`},
		"unknown":  {"crun: {path: /bin/sh, root: /x}", `unknown field "root"`},
		"not ours": {"crun: {path: /bin/sh}\nruntimeEndpoint: /run/c.sock", "runtimeHandlers: are of the built-in runtime"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "yare.yaml")
			if err := os.WriteFile(file, []byte("runtimeHandlers:\n  "+c.text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			config, err := loadConfig(file, "x")
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil || config.RuntimeHandlers["crun"].Path != "/bin/sh" || len(config.RuntimeHandlers["gvisor"].Options) != 1 {
				t.Errorf("got %+v, %v", config.RuntimeHandlers, err)
			}
		})
	}
}

// TestRuntimeHandlerFlag is the same as a flag.
func TestRuntimeHandlerFlag(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values []string
		want   string
	}{
		{[]string{"crun=/bin/sh", "gvisor=/bin/sh --platform=systrap --x"}, ""},
		{[]string{"crun"}, "use NAME=PATH"},
		{[]string{"crun= "}, "use NAME=PATH"},
		{[]string{"crun=/no/such"}, "crun.path: stat /no/such"},
		{[]string{"crun=/bin/sh", "crun=/bin/ls"}, "twice"},
	} {
		command := runtimeCommand()
		var err error
		for _, v := range c.values {
			if err == nil {
				err = command.Flags().Set("runtime-handler", v)
			}
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.values, err, c.want)
		}
	}
}
