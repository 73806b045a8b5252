package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/cmd/cluster"
)

var update = flag.Bool("update", false, "rewrite the golden files")

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
		"unknown":  {"crun: {path: /bin/sh, root: /x}", `unknown field "runtimeHandlers.crun.root"`},
		"not ours": {"crun: {path: /bin/sh}\nruntimeEndpoint: /run/c.sock", "runtimeHandlers: are of the built-in runtime"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "yare.yaml")
			if err := os.WriteFile(file, []byte("runtimeHandlers:\n  "+c.text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			config, err := readSettings(file, "x")
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

// TestSettingsMistakes finds what is wrong with a file told by the file and the field, in people's words, all of it at once.
func TestSettingsMistakes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"maxPod: 3":                                       {`unknown field "maxPod"`},
		"apiServer: {audit: x}":                           {`unknown field "apiServer.audit"`},
		"maxPods: many":                                   {"maxPods: is text, where a whole number belongs"},
		"maxPods: 1.5":                                    {"maxPods: is a number 1.5, where a whole number belongs"},
		"debug: 3":                                        {"debug: is a number, where true or false belongs"},
		"name: [a]":                                       {"name: is a list, where text belongs"},
		"etcdEndpoints: https://x":                        {"etcdEndpoints: is text, where a list belongs"},
		"evictionHard: {memory: 1Gi}":                     {"evictionHard.memory: is not a signal: use memory.available"},
		"evictionHard: {memory.available: x}":             {`evictionHard.memory.available: "x" is neither`},
		"evictionHard: {memory.available: 5}":             {"evictionHard: one of its values is a number, where text belongs"},
		"evictionMaxPodGracePeriod: x":                    {"evictionMaxPodGracePeriod: is text, where a whole number belongs"},
		"evictionMaxPodGracePeriod: -1":                   {"evictionMaxPodGracePeriod: -1 is negative"},
		"evictionSoft: {pid.available: 5%}":               {"evictionSoftGracePeriod: pid.available is missing"},
		"evictionPressureTransitionPeriod: 5":             {"evictionPressureTransitionPeriod: is a number, where a duration such as 1m30s belongs"},
		"evictionPressureTransitionPeriod: {a: b}":        {"evictionPressureTransitionPeriod: is a map, where a duration such as 1m30s belongs"},
		"evictionPressureTransitionPeriod: -5m":           {"evictionPressureTransitionPeriod: -5m0s is negative"},
		"evictionPressureTransitionPeriod: soon":          {`evictionPressureTransitionPeriod: "soon" is not a duration such as 1m30s`},
		"apiServer: {auditLogMaxSize: big}":               {"apiServer.auditLogMaxSize: is text, where a whole number belongs"},
		"apiServer: x":                                    {"apiServer: is text, where a map belongs"},
		"runtimeHandlers: {crun: /usr/bin/crun}":          {"is text, where a map belongs"},
		"advertiseAddress: 1.2":                           {"advertiseAddress: "},
		"advertiseAddress: x":                             {`advertiseAddress: "x": unable to parse IP`},
		"a: 1\nlogLevel: 3":                               {`unknown field "a"`, "logLevel: is a number, where text belongs"},
		"maxPods: 1\nmaxPods: 2":                          {"line 2", `"maxPods" already set`},
		"name: a\n  b: [":                                 {"not YAML: line 2"},
		"text":                                            {"NAME: VALUE"},
		"maxPods: 999\nlogLevel: loud":                    {"maxPods: 999: from 1 to 250", `logLevel: "loud": use`},
		"apiServer: {encryptionConfig: keys.yaml}":        {`apiServer.encryptionConfig: "keys.yaml" is not an absolute path`},
		"dataDir: data":                                   {`dataDir: "data" is not an absolute path`},
		"podCIDRs: 10.42.0.0/16":                          {"podCIDRs: is text, where a list belongs"},
		"podCIDRs: [x]":                                   {`podCIDRs: "x": no '/'`},
		"podCIDRs: [10.42.0.0/16]":                        {"podCIDRs: are given together with serviceCIDRs"},
		"nodeIPs: [10.0.0.1, 10.0.0.2]":                   {"nodeIPs[1]: 10.0.0.2 is the second of its family"},
		"nodeIPs: [127.0.0.1]":                            {`nodeIPs[0]: "127.0.0.1" is not an address by which others reach`},
		"nodeIPs: [10.0.0.1]\nadvertiseAddress: 10.0.0.2": {"nodeIPs: the first, 10.0.0.1, is not advertiseAddress"},
		"podCIDRs: [10.42.0.0/16, 'fd42::/56']\nserviceCIDRs: ['fd43::/112', 10.43.0.0/16]": {"serviceCIDRs: fd43::/112 is not of the family of podCIDRs' 10.42.0.0/16"},
	} {
		file := filepath.Join(t.TempDir(), "yare.yaml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := readSettings(file, "")
		if err == nil {
			t.Errorf("%q was accepted", text)
			continue
		}
		for _, w := range append(want, file) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: no %q in: %v", text, w, err)
			}
		}
		if inside := regexp.MustCompile(`json|JSON|Go |struct|unmarshal|ParseAddr`).FindString(err.Error()); inside != "" {
			t.Errorf("%q: %q in: %v", text, inside, err)
		}
	}
}

// TestSettingsBesideFlags puts a file beside the flags of `yare up`: what only one of them says counts, and they must not differ.
func TestSettingsBesideFlags(t *testing.T) {
	t.Parallel()
	type wish = cluster.Wish
	for _, tt := range []struct {
		file  string
		flags wish
		want  wish
		wrong string
	}{
		{file: "maxPods: 9", flags: wish{Name: "x", APIPort: 7}, want: wish{Name: "x", APIPort: 7}},
		{file: "maxPods: 9", want: wish{Name: cluster.DefaultName}},
		{
			file: "{name: x, dataDir: /d, kubeconfig: /k, ephemeral: true, apiPort: 7}",
			want: wish{Name: "x", DataDir: "/d", Kubeconfig: "/k", Ephemeral: new(true), APIPort: 7},
		},
		{
			file:  "{name: x, dataDir: /d, kubeconfig: /k, ephemeral: true, apiPort: 7}",
			flags: wish{Name: "x", DataDir: "/d", Kubeconfig: "/k", Ephemeral: new(true), APIPort: 7},
			want:  wish{Name: "x", DataDir: "/d", Kubeconfig: "/k", Ephemeral: new(true), APIPort: 7},
		},
		{file: "name: x", flags: wish{Name: "y"}, wrong: "name: x, but --name says y"},
		{file: "dataDir: /d", flags: wish{DataDir: "/e"}, wrong: "dataDir: /d, but --data-dir says /e"},
		{file: "kubeconfig: /d", flags: wish{Kubeconfig: "/e"}, wrong: "kubeconfig: /d, but --kubeconfig says /e"},
		{file: "apiPort: 7", flags: wish{APIPort: 8}, wrong: "apiPort: 7, but --api-port says 8"},
		{file: "ephemeral: false", flags: wish{Ephemeral: new(true)}, wrong: "ephemeral: false, but --ephemeral says true"},
	} {
		file := filepath.Join(t.TempDir(), "yare.yaml")
		if err := os.WriteFile(file, []byte(tt.file), 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := readSettings(file, "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.beside(tt.flags, tt.flags.Name != "")
		if tt.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wrong) || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %v", tt.file, err)
			}
			continue
		}
		tt.want.UsualKubeconfig = defaultKubeconfig()
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v", tt.file, got, err)
		}
	}
}

// TestClusterSettings finds the settings of a cluster's last start where no others are given.
func TestClusterSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := cluster.Host{VarDir: filepath.Join(dir, "var"), RunDir: filepath.Join(dir, "run")}
	r, _, err := h.Claim(cluster.Wish{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	pods := func(file string) int {
		t.Helper()
		s, err := clusterSettings(h, file, "x")
		if err != nil || s.Name != "x" {
			t.Fatal(s, err)
		}
		return s.MaxPods
	}
	if n := pods(""); n != 110 {
		t.Errorf("without a file: %d", n)
	}
	text := []byte("{name: other, maxPods: 9}") // by which it was once served under another name
	if !r.HasSettings(nil) || r.HasSettings(text) {
		t.Error("has settings that it was never given")
	}
	if err := r.KeepSettings(text); err != nil || !r.HasSettings(text) || r.HasSettings(nil) {
		t.Fatal(err)
	}
	if n := pods(""); n != 9 {
		t.Errorf("kept: %d", n)
	}
	if n := pods("/dev/null"); n != 110 {
		t.Errorf("an empty file: %d", n)
	}
}

// TestSettingsHelp makes settings.yaml of the settings' comments: what `yare config --help` says is all there is, and a file of the
// defaults.
func TestSettingsHelp(t *testing.T) {
	t.Parallel()
	defaults, err := yaml.Marshal(defaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(defaults, &values); err != nil {
		t.Fatal(err)
	}
	structs := map[string]*ast.StructType{}
	for _, dir := range []string{".", "../../apiserver/authn"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			tree, err := parser.ParseFile(gotoken.NewFileSet(), f, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(tree, func(n ast.Node) bool {
				if s, ok := n.(*ast.TypeSpec); ok {
					if st, ok := s.Type.(*ast.StructType); ok {
						structs[s.Name.Name] = st
					}
				}
				return true
			})
		}
	}
	var got strings.Builder
	explainSettings(&got, structs, "Config", "", values)
	if *update {
		if err := os.WriteFile("settings.yaml", []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if on, err := os.ReadFile("settings.yaml"); err != nil || string(on) != got.String() {
		t.Errorf("settings.yaml differs (-update rewrites it): %v\n%s", err, got.String())
	}
	c := defaultConfig()
	if _, err := c.decode([]byte(got.String())); err != nil || !reflect.DeepEqual(c, defaultConfig()) {
		t.Errorf("not the defaults: %+v, %v", c, err)
	}
	for _, name := range []string{"runtimeHandlers:", "encryptionConfig:", "usernameHeaders:", "overhead.podFixed", "evictionHard:", "nodefs.inodesFree"} {
		if !strings.Contains(output(t, "config", "--help"), name) {
			t.Errorf("no %s in yare config --help", name)
		}
	}
}

// explainSettings writes a struct's settings with their comments, in which their Go names become those of the file.
func explainSettings(to *strings.Builder, structs map[string]*ast.StructType, name, indent string, values map[string]any) {
	type setting struct{ name, of, doc string }
	var all []setting
	names := map[string]string{}
	for _, f := range structs[name].Fields.List {
		for i, id := range f.Names {
			tag := strings.TrimSuffix(strings.TrimPrefix(f.Tag.Value, "`json:\""), "\"`")
			s := setting{}
			s.name, _, _ = strings.Cut(tag, ",")
			switch of := f.Type.(type) {
			case *ast.Ident:
				s.of = of.Name
			case *ast.SelectorExpr:
				s.of = of.Sel.Name
			}
			if i == 0 {
				s.doc = f.Doc.Text()
			}
			names[id.Name] = s.name
			all = append(all, s)
		}
	}
	words := regexp.MustCompile(`[A-Za-z]+`)
	for _, s := range all {
		for line := range strings.Lines(s.doc) {
			line = words.ReplaceAllStringFunc(strings.TrimRight(line, "\n"), func(w string) string {
				if n := names[w]; n != "" {
					return n
				}
				return w
			})
			to.WriteString(strings.TrimRight(indent+"# "+strings.ReplaceAll(line, "\t", "  "), " ") + "\n")
		}
		value := ""
		if v := values[s.name]; v != nil {
			value = fmt.Sprint(" ", v)
		}
		fmt.Fprintf(to, "%s%s:%s\n", indent, s.name, value)
		if structs[s.of] != nil {
			explainSettings(to, structs, s.of, indent+"  ", nil)
		}
	}
}

// What is printed of eviction is what counts, and as a file it says the same.
func TestPrintedEviction(t *testing.T) {
	t.Parallel()
	const usual = "evictionHard:\n  imagefs.available: 15%\n  imagefs.inodesFree: 5%\n  memory.available: 100Mi\n  nodefs.available: 10%\n  nodefs.inodesFree: 5%\n"
	for file, want := range map[string][]string{
		"":                 {usual, "evictionPressureTransitionPeriod: 5m0s\n"},
		"evictionHard: {}": {"evictionHard: {}\n"},
		"evictionHard: {memory.available: 1Gi}\nevictionPressureTransitionPeriod: 1m": {"evictionHard:\n  memory.available: 1Gi\n", "evictionPressureTransitionPeriod: 1m0s\n"},
		"evictionHard: {memory.available: 1Gi}\nmergeDefaultEvictionSettings: true":   {strings.Replace(usual, "100Mi", "1Gi", 1), "mergeDefaultEvictionSettings: true\n"},
	} {
		write := func(text string) string {
			path := filepath.Join(t.TempDir(), "settings.yaml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		got := output(t, "config", "--name", "none-of-this-name", "--config", write(file))
		for _, w := range want {
			if !strings.Contains("\n"+got, "\n"+w) {
				t.Errorf("%q: no %q in\n%s", file, w, got)
			}
		}
		if again := output(t, "config", "--name", "none-of-this-name", "--config", write(got)); again != got {
			t.Errorf("%q: printed, and read again:\n%s", file, again)
		}
	}
}

// TestNodeAddresses finds the addresses of a node in the order of the ranges, or says which is missing.
func TestNodeAddresses(t *testing.T) {
	t.Parallel()
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	four, six := prefix("10.42.0.0/16"), prefix("fd42::/56")
	for _, tt := range []struct {
		config Config
		ranges []netip.Prefix
		want   string
	}{
		{Config{NodeIPs: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}}, []netip.Prefix{four, six}, "192.0.2.1,2001:db8::1"},
		{Config{NodeIPs: []netip.Addr{addr("2001:db8::1"), addr("192.0.2.1")}}, []netip.Prefix{six, four}, "2001:db8::1,192.0.2.1"},
		{Config{NodeIPs: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")}}, []netip.Prefix{four}, "192.0.2.1"},
		{Config{AdvertiseAddress: addr("2001:db8::1")}, []netip.Prefix{six}, "2001:db8::1"},
		{Config{AdvertiseAddress: addr("192.0.2.1")}, []netip.Prefix{six}, "advertiseAddress: 192.0.2.1 is not of the family of fd42::/56"},
		{Config{NodeIPs: []netip.Addr{addr("2001:db8::1"), addr("192.0.2.1")}}, []netip.Prefix{four, six}, "nodeIPs: 2001:db8::1 is not of the family of 10.42.0.0/16"},
	} {
		as, err := tt.config.nodeAddresses(tt.ranges)
		if got := joined(as); err == nil && got != tt.want || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v, %v: %s, %v", tt.config.NodeIPs, tt.ranges, got, err)
		}
	}
}

// TestJoinFile reads files of one family as they were before there were two, and writes such.
func TestJoinFile(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"clusterCIDR: 10.42.0.0/16\ndns: 10.43.0.10\n":                   1,
		"clusterCIDR: 10.42.0.0/16,fd42::/56\ndns: 10.43.0.10,fd43::a\n": 2,
	} {
		j := new(join)
		if err := yaml.UnmarshalStrict([]byte(text), j); err != nil {
			t.Fatal(err)
		}
		if len(j.ClusterCIDR) != want || len(j.DNS) != want {
			t.Errorf("%s: %v %v", text, j.ClusterCIDR, j.DNS)
		}
		var b strings.Builder
		if err := j.print(&b); err != nil || !strings.Contains(b.String(), strings.Split(text, "\n")[0]+"\n") {
			t.Errorf("%v: %s", err, b.String())
		}
	}
	if err := yaml.UnmarshalStrict([]byte("clusterCIDR: 10.42.0.0/16;x"), new(join)); err == nil {
		t.Error("a mistake was accepted")
	}
}
