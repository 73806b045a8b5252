package authn

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
)

// Paths of the documents with which others verify service account tokens.
const (
	ConfigurationPath = "/.well-known/openid-configuration"
	KeysPath          = "/openid/v1/jwks"
)

// Document is a file served as it is.
type Document struct {
	ContentType string
	Body        []byte
}

// ServeHTTP answers with the document.
func (d Document) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", d.ContentType)
	w.Header().Set("Cache-Control", "public, max-age=3600")
	// The client is gone if this fails; there is nobody left to tell.
	_, _ = w.Write(d.Body)
}

// Documents returns the OpenID discovery documents by path.
func (t *Tokens) Documents() (map[string]Document, error) {
	config, err := json.Marshal(map[string]any{
		"issuer":                                t.config.Issuer,
		"jwks_uri":                              t.config.Issuer + KeysPath,
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256"},
	})
	if err != nil {
		return nil, fmt.Errorf("encode OpenID configuration: %w", err)
	}
	point, err := t.config.Key.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode service account key: %w", err)
	}
	// The point is 0x04, X, Y.
	half := (len(point) - 1) / 2
	coordinate := base64.RawURLEncoding.EncodeToString
	keys, err := json.Marshal(map[string]any{"keys": []map[string]string{{
		"use": "sig", "kty": "EC", "kid": t.kid, "crv": "P-256", "alg": "ES256",
		"x": coordinate(point[1 : 1+half]), "y": coordinate(point[1+half:]),
	}}})
	if err != nil {
		return nil, fmt.Errorf("encode service account key: %w", err)
	}
	return map[string]Document{
		ConfigurationPath: {"application/json", config},
		KeysPath:          {"application/jwk-set+json", keys},
	}, nil
}
