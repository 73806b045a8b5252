package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/kubelet"
)

// settings are a Config with the file that it is of.
type settings struct {
	Config
	file  string // its path; empty where there are but defaults
	text  []byte // its content, which the cluster keeps for its next start
	given map[string]json.RawMessage
}

// clusterSettings reads the file, or without one what the cluster was last started with. A name counts more than the file's.
func clusterSettings(h cluster.Host, file, name string) (*settings, error) {
	if file != "" {
		return readSettings(file, name)
	}
	if name == "" {
		name = cluster.DefaultName
	}
	r, err := h.Find(name)
	if err != nil && !errors.Is(err, cluster.ErrUnknown) {
		return nil, err
	}
	if err == nil {
		if _, err := os.Stat(r.SettingsFile()); err == nil {
			file = r.SettingsFile()
		}
	}
	return readSettings(file, name)
}

// readSettings reads the file, if one is given, over the defaults. A name counts more than the file's. All problems are told at once,
// each with its field.
func readSettings(file, name string) (*settings, error) {
	s := &settings{Config: defaultConfig(), file: file}
	var errs []error
	if file != "" {
		var err error
		if s.text, err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("settings: %w", err)
		}
		if s.given, err = s.decode(s.text); err != nil {
			return nil, fmt.Errorf("settings in %s: %w", file, err)
		}
		errs = append(errs, s.checkPaths())
	}
	if name != "" {
		s.Name = name
	}
	if s.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		s.NodeName = strings.ToLower(host)
	}
	if err := errors.Join(append(errs, s.validate())...); err != nil {
		if file == "" {
			return nil, fmt.Errorf("settings: %w", err)
		}
		return nil, fmt.Errorf("settings in %s: %w", file, err)
	}
	return s, nil
}

// decode reads YAML over c and returns the fields that it has. Go's decoders speak of Go: a person is told the field and what is wrong
// with it.
func (c *Config) decode(text []byte) (given map[string]json.RawMessage, err error) {
	all, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		why := strings.TrimPrefix(err.Error(), "yaml: ")
		return nil, errors.New("not YAML: " + strings.TrimPrefix(why, "unmarshal errors:\n  "))
	}
	if err := json.Unmarshal(all, &given); err != nil {
		return nil, errors.New("not settings, which are lines of NAME: VALUE")
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(given)) {
		one, err := json.Marshal(map[string]json.RawMessage{name: given[name]})
		if err != nil {
			return nil, err
		}
		strict, err := kjson.UnmarshalStrict(one, c)
		errs = append(errs, strict...) // unknown field "apiServer.x"
		if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
			what := "is"
			if wrong.Field == name && given[name][0] == '{' && wrong.Type.Kind() == reflect.String { // in a map, of which it does not name the key
				what = "one of its values is"
			}
			errs = append(errs, fmt.Errorf("%s: %s %s, where %s belongs", wrong.Field, what, word(wrong.Value), wordFor(wrong.Type)))
		} else if err != nil {
			// The types that say themselves what is wrong with them are addresses and ranges of them.
			errs = append(errs, fmt.Errorf("%s: %s", name, strings.NewReplacer("netip.ParsePrefix(", "", "ParseAddr(", "", "):", ":").Replace(err.Error())))
		}
	}
	return given, errors.Join(errs...)
}

// word is what people call a JSON value.
func word(value string) string {
	switch kind, _, _ := strings.Cut(value, " "); kind {
	case "object":
		return "a map"
	case "array":
		return "a list"
	case "bool":
		return "true or false"
	case "string":
		return "text"
	default:
		return "a " + value // number 2.5
	}
}

// wordFor is what people call values of a Go type.
func wordFor(t reflect.Type) string {
	if t == reflect.TypeFor[kubelet.Duration]() {
		return "a duration such as 1m30s"
	}
	switch t.Kind() {
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Bool:
		return word("bool")
	case reflect.Slice:
		return word("array")
	case reflect.Map, reflect.Struct:
		return word("object")
	default:
		return word("string")
	}
}

// checkPaths refuses paths that would be another file for a server that is started in another folder.
func (c *Config) checkPaths() error {
	a := &c.APIServer
	var errs []error
	for _, p := range []struct{ field, path string }{
		{"dataDir", c.DataDir}, {"kubeconfig", c.Kubeconfig},
		{"etcdCAFile", c.EtcdCAFile}, {"etcdCertFile", c.EtcdCertFile}, {"etcdKeyFile", c.EtcdKeyFile},
		{"apiServer.authenticationConfig", a.AuthenticationConfig}, {"apiServer.requestHeader.clientCAFile", a.RequestHeader.ClientCAFile},
		{"apiServer.tokenWebhookConfig", a.TokenWebhookConfig}, {"apiServer.authorizationConfig", a.AuthorizationConfig},
		{"apiServer.admissionConfig", a.AdmissionConfig}, {"apiServer.encryptionConfig", a.EncryptionConfig},
		{"apiServer.auditPolicy", a.AuditPolicy}, {"apiServer.auditLog", a.AuditLog}, {"apiServer.auditWebhookConfig", a.AuditWebhookConfig},
		{"cniConfigDir", c.CNIConfigDir}, {"cniBinDir", c.CNIBinDir}, {"staticPodDir", c.StaticPodDir},
		{"imageCredentialProviderConfig", c.ImageCredentialProviderConfig}, {"imageCredentialProviderBinDir", c.ImageCredentialProviderBinDir},
	} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", p.field, p.path))
		}
	}
	return errors.Join(errs...)
}

// wish is what the settings ask of the cluster's record.
func (s *settings) wish() cluster.Wish {
	w := cluster.Wish{Name: s.Name, DataDir: s.DataDir, Kubeconfig: s.Kubeconfig, UsualKubeconfig: defaultKubeconfig(), APIPort: s.APIPort,
		PodCIDRs: s.PodCIDRs, ServiceCIDRs: s.ServiceCIDRs}
	if _, given := s.given["ephemeral"]; given {
		w.Ephemeral = &s.Ephemeral
	}
	return w
}

// beside adds to the flags of `yare up` what the file says of the same things. Where both speak they must agree.
func (s *settings) beside(flags cluster.Wish, named bool) (cluster.Wish, error) {
	w := s.wish()
	var errs []error
	differ := func(field, flag string, file, given any) {
		errs = append(errs, fmt.Errorf("%s: %v, but --%s says %v: leave one of them out", field, file, flag, given))
	}
	if _, inFile := s.given["name"]; named && inFile && flags.Name != s.Name {
		differ("name", "name", s.Name, flags.Name)
	}
	if named {
		w.Name = flags.Name
	}
	for _, p := range []struct {
		field, flag string
		file, given *string
	}{{"dataDir", "data-dir", &w.DataDir, &flags.DataDir}, {"kubeconfig", "kubeconfig", &w.Kubeconfig, &flags.Kubeconfig}} {
		if *p.file != "" && *p.given != "" && filepath.Clean(*p.file) != filepath.Clean(*p.given) {
			differ(p.field, p.flag, *p.file, *p.given)
		}
		if *p.given != "" {
			*p.file = *p.given
		}
	}
	if w.APIPort != 0 && flags.APIPort != 0 && w.APIPort != flags.APIPort {
		differ("apiPort", "api-port", w.APIPort, flags.APIPort)
	}
	if flags.APIPort != 0 {
		w.APIPort = flags.APIPort
	}
	if w.Ephemeral != nil && flags.Ephemeral != nil && *w.Ephemeral != *flags.Ephemeral {
		differ("ephemeral", "ephemeral", *w.Ephemeral, *flags.Ephemeral)
	}
	if flags.Ephemeral != nil {
		w.Ephemeral = flags.Ephemeral
	}
	if len(errs) > 0 {
		return w, fmt.Errorf("settings in %s: %w", s.file, errors.Join(errs...))
	}
	return w, nil
}
