package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/yare-dev/yare/apiserver/audit"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/linux/durable"
)

// APIServerConfig are the settings of the API server that files of upstream's forms hold, and its audit log.
type APIServerConfig struct {
	// AuthenticationConfig is a file with an AuthenticationConfiguration of apiserver.config.k8s.io/v1: OpenID Connect issuers, and which
	// paths need no credentials.
	AuthenticationConfig string `json:"authenticationConfig,omitempty"`
	// RequestHeader says which proxies before the API server may speak for others, by headers. Default: none.
	RequestHeader authn.FrontProxy `json:"requestHeader,omitzero"`
	// TokenWebhookConfig is a kubeconfig file that names a service to which bearer tokens are sent for review.
	TokenWebhookConfig string `json:"tokenWebhookConfig,omitempty"`
	// AuthorizationConfig is a file with an AuthorizationConfiguration of apiserver.config.k8s.io/v1. Default: Node, then RBAC.
	AuthorizationConfig string `json:"authorizationConfig,omitempty"`
	// AdmissionConfig is a file with an AdmissionConfiguration of apiserver.config.k8s.io/v1: the plug-in EventRateLimit, where it is to
	// be used.
	AdmissionConfig string `json:"admissionConfig,omitempty"`
	// EncryptionConfig is a file with an EncryptionConfiguration of apiserver.config.k8s.io/v1: which kinds are encrypted in etcd, and
	// with which keys. This file, AuthenticationConfig and AuthorizationConfig are read anew within a minute after they have changed.
	EncryptionConfig string `json:"encryptionConfig,omitempty"`
	// AuditPolicy is a file with a Policy of audit.k8s.io/v1. Without it nothing is recorded.
	AuditPolicy string `json:"auditPolicy,omitempty"`
	// AuditLog is the file that audit events are written to, one a line.
	AuditLog string `json:"auditLog,omitempty"`
	// AuditLogMaxSize is the size in megabytes from which a new file is begun. Default: 100.
	AuditLogMaxSize int `json:"auditLogMaxSize,omitempty"`
	// AuditLogMaxAge is for how many days old files are kept. Default: for ever.
	AuditLogMaxAge int `json:"auditLogMaxAge,omitempty"`
	// AuditLogMaxBackups is how many old files are kept. Default: all.
	AuditLogMaxBackups int `json:"auditLogMaxBackups,omitempty"`
	// AuditWebhookConfig is a kubeconfig file that names a service to which audit events are sent in batches.
	AuditWebhookConfig string `json:"auditWebhookConfig,omitempty"`
}

func (c *APIServerConfig) validate(problem func(field, format string, args ...any)) {
	if c.AuditPolicy == "" && (c.AuditLog != "" || c.AuditWebhookConfig != "") {
		problem("apiServer.auditPolicy", "is needed for an audit log")
	}
	for name, n := range map[string]int{"auditLogMaxSize": c.AuditLogMaxSize, "auditLogMaxAge": c.AuditLogMaxAge, "auditLogMaxBackups": c.AuditLogMaxBackups} {
		if n < 0 {
			problem("apiServer."+name, "%d is negative", n)
		}
	}
}

func (c *APIServerConfig) audit() audit.Config {
	return audit.Config{
		PolicyFile: c.AuditPolicy, WebhookKubeconfig: c.AuditWebhookConfig,
		File: audit.FileConfig{Path: c.AuditLog, MaxSize: c.AuditLogMaxSize, MaxAge: c.AuditLogMaxAge, MaxBackups: c.AuditLogMaxBackups},
	}
}

// flags adds the settings under the names that they have upstream.
func (c *APIServerConfig) flags(to *cobra.Command) {
	l := to.Flags()
	l.StringVar(&c.AuthenticationConfig, "authentication-config", "", "file with an AuthenticationConfiguration: OpenID Connect issuers, anonymous paths")
	h := &c.RequestHeader
	l.StringVar(&h.ClientCAFile, "requestheader-client-ca-file", "", "authorities of proxies that may speak for others")
	l.StringSliceVar(&h.AllowedNames, "requestheader-allowed-names", nil, "common names of these proxies (default: any)")
	l.StringSliceVar(&h.UsernameHeaders, "requestheader-username-headers", nil, "headers with the user's name")
	l.StringSliceVar(&h.UIDHeaders, "requestheader-uid-headers", nil, "headers with the user's UID")
	l.StringSliceVar(&h.GroupHeaders, "requestheader-group-headers", nil, "headers with the user's groups")
	l.StringSliceVar(&h.ExtraHeaderPrefixes, "requestheader-extra-headers-prefix", nil, "what headers with extras of the user begin with")
	l.StringVar(&c.TokenWebhookConfig, "authentication-token-webhook-config-file", "", "kubeconfig of a service that reviews bearer tokens")
	l.StringVar(&c.AuthorizationConfig, "authorization-config", "", "file with an AuthorizationConfiguration (default: Node, then RBAC)")
	l.StringVar(&c.AdmissionConfig, "admission-control-config-file", "", "file with an AdmissionConfiguration: limits of Events")
	l.StringVar(&c.EncryptionConfig, "encryption-provider-config", "", "file with an EncryptionConfiguration: what is encrypted in etcd")
	l.StringVar(&c.AuditPolicy, "audit-policy-file", "", "file with the audit policy")
	l.StringVar(&c.AuditLog, "audit-log-path", "", "file that audit events are written to")
	l.IntVar(&c.AuditLogMaxSize, "audit-log-maxsize", 0, "size in megabytes from which a new file is begun (default 100)")
	l.IntVar(&c.AuditLogMaxAge, "audit-log-maxage", 0, "days for which old files are kept (default: for ever)")
	l.IntVar(&c.AuditLogMaxBackups, "audit-log-maxbackup", 0, "how many old files are kept (default: all)")
	l.StringVar(&c.AuditWebhookConfig, "audit-webhook-config-file", "", "kubeconfig of a service that gets audit events in batches")
}

// files are the settings that name a file to be read, by field.
func (c *APIServerConfig) files() map[string]*string {
	return map[string]*string{
		"authenticationConfig": &c.AuthenticationConfig, "clientCAFile": &c.RequestHeader.ClientCAFile, "tokenWebhookConfig": &c.TokenWebhookConfig,
		"authorizationConfig": &c.AuthorizationConfig, "admissionConfig": &c.AdmissionConfig, "encryptionConfig": &c.EncryptionConfig,
		"auditPolicy": &c.AuditPolicy, "auditWebhookConfig": &c.AuditWebhookConfig,
	}
}

// read returns the content of each file, for another server. What these files name in turn, such as sockets, that one has to have itself.
func (c *APIServerConfig) read() (map[string][]byte, error) {
	all := map[string][]byte{}
	for field, path := range c.files() {
		if *path == "" {
			continue
		}
		b, err := os.ReadFile(*path)
		if err != nil {
			return nil, fmt.Errorf("apiServer.%s: %w", field, err)
		}
		all[field] = b
	}
	return all, nil
}

// write puts into dir what another server's read has returned, and has the settings name these files.
func (c *APIServerConfig) write(dir string, all map[string][]byte) error {
	for field, path := range c.files() {
		b, given := all[field]
		if !given {
			continue
		}
		*path = filepath.Join(dir, field)
		if err := durable.Write(*path, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}
