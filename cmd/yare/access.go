package main

import (
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
	rbac       *authz.RBAC
	authorizer authz.Authorizer
}

// access puts together those who know users and those who decide.
func (s *server) access(tokens *authn.Tokens, self client.Client) (*access, error) {
	c := s.config.APIServer
	verifiers := []authn.Verifier{tokens, authn.ForServer(authn.BootstrapToken(self), tokens.Audiences())}
	a := &access{rbac: authz.NewRBAC(s.store)}
	if c.AuthenticationConfig != "" {
		config, err := authn.LoadConfiguration(c.AuthenticationConfig)
		if err != nil {
			return nil, err
		}
		a.anonymous = config.AnonymousOn
		verifiers = append(verifiers, authn.ForServer(authn.NewOIDC(config.JWT).Verify, tokens.Audiences()))
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
		config, err := authz.LoadConfiguration(c.AuthorizationConfig)
		if err != nil {
			return nil, err
		}
		if a.authorizer, err = authz.Configured(config, authz.NewNode(s.store), a.rbac); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// sealed is the database with the encryption that the settings ask for.
func (s *server) sealed(b store.Backend) (store.Backend, error) {
	if s.config.APIServer.EncryptionConfig == "" {
		return b, nil
	}
	c, err := sealed.LoadConfig(s.config.APIServer.EncryptionConfig)
	if err != nil {
		return nil, err
	}
	return sealed.New(b, c, api.Stored(), s.log)
}
