package main

import (
	"context"
	"crypto/x509"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/sealed"
)

// access is who may come in and what they may do, as the settings have it.
type access struct {
	verifier   authn.Verifier
	anonymous  func(path string) bool
	proxies    authn.Authenticator // nil: none are believed
	rbac       *authz.RBAC
	authorizer authz.Authorizer
}

// access puts together those who know users and those who decide.
func (s *server) access(tokens *authn.Tokens, self client.Client) (*access, error) {
	c := s.config.APIServer
	own := tokens.Audiences()
	verifiers := []authn.Verifier{
		tokens,
		authn.ForServer(authn.SecretToken(&s.pki.ServiceAccounts.PublicKey, self, s.log), own),
		authn.ForServer(authn.BootstrapToken(self), own),
	}
	a := &access{rbac: authz.NewRBAC(s.store)}
	if c.AuthenticationConfig != "" {
		config, err := authn.LoadConfiguration(c.AuthenticationConfig)
		if err != nil {
			return nil, err
		}
		a.anonymous = config.AnonymousOn
		verifiers = append(verifiers, authn.ForServer(config.Verify, own))
		s.files = append(s.files, config.Follow(s.log))
	}
	if f := &c.RequestHeader; f.ClientCAFile != "" {
		var err error
		if s.proxies, err = f.Authorities(); err != nil {
			return nil, err
		}
		if a.proxies, err = authn.FrontProxies(*f, s.proxies); err != nil {
			return nil, err
		}
	}
	if c.TokenWebhookConfig != "" {
		reviews, err := authn.NewTokenReviews(c.TokenWebhookConfig)
		if err != nil {
			return nil, err
		}
		verifiers = append(verifiers, reviews)
	}
	a.verifier = authn.Verifiers(verifiers...)
	a.authorizer = authz.Union(authz.NewNode(s.store), a.rbac)
	if c.AuthorizationConfig != "" {
		config, err := authz.LoadConfiguration(c.AuthorizationConfig, authz.NewNode(s.store), a.rbac)
		if err != nil {
			return nil, err
		}
		a.authorizer = config
		s.files = append(s.files, config.Follow(s.log))
	}
	return a, nil
}

// authenticators are those who are asked for a request's user, in order.
func (a *access) authenticators(pool *x509.CertPool, audiences []string) (all []authn.Authenticator) {
	if a.proxies != nil {
		all = append(all, a.proxies)
	}
	return append(all, authn.Certificates(pool), authn.Bearer(a.verifier, audiences))
}

// sealed is the database with the encryption that the settings ask for.
func (s *server) sealed(b store.Backend) (store.Backend, error) {
	if s.config.APIServer.EncryptionConfig == "" {
		return b, nil
	}
	e, err := sealed.New(b, s.config.APIServer.EncryptionConfig, api.Stored(), s.log)
	if err != nil {
		return nil, err
	}
	s.files = append(s.files, e.Follow())
	s.health.Probe("kms-providers", func() bool {
		err := e.Well(context.Background())
		if err != nil {
			s.log.Warn("encryption at rest does not work", "err", err)
		}
		return err == nil
	})
	return e, nil
}
