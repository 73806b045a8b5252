package authn

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/golang-jwt/jwt/v5"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apitypes "k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

const (
	// secretIssuer is the issuer of the tokens that are kept in Secrets.
	secretIssuer = "kubernetes/serviceaccount"
	// lastUsed is the label of a Secret that says on which day, in UTC, its token was shown last.
	lastUsed = "kubernetes.io/legacy-token-last-used"
	// invalidSince is the label by which a Secret's token is put out of force.
	invalidSince = "kubernetes.io/legacy-token-invalid-since"
)

// secretClaims are what the token in a Secret says: it has no end and no audience.
type secretClaims struct {
	jwt.RegisteredClaims
	Namespace string       `json:"kubernetes.io/serviceaccount/namespace"`
	Secret    string       `json:"kubernetes.io/serviceaccount/secret.name"`
	Account   string       `json:"kubernetes.io/serviceaccount/service-account.name"`
	UID       apitypes.UID `json:"kubernetes.io/serviceaccount/service-account.uid"`
}

// SignSecretToken returns the token of account that the Secret s, of type kubernetes.io/service-account-token, is to keep. The key
// is an RSA or ECDSA key.
func SignSecretToken(key crypto.Signer, s *corev1.Secret, account *corev1.ServiceAccount) (string, error) {
	method, err := signingMethod(key)
	if err != nil {
		return "", err
	}
	j := jwt.NewWithClaims(method, secretClaims{
		RegisteredClaims: jwt.RegisteredClaims{Issuer: secretIssuer, Subject: serviceAccountUser + account.Namespace + ":" + account.Name},
		Namespace:        account.Namespace, Secret: s.Name, Account: account.Name, UID: account.UID,
	})
	if j.Header["kid"], err = keyID(key.Public()); err != nil {
		return "", err
	}
	token, err := j.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return token, nil
}

func signingMethod(key crypto.Signer) (jwt.SigningMethod, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return jwt.SigningMethodRS256, nil
	case *ecdsa.PrivateKey:
		for _, m := range []*jwt.SigningMethodECDSA{jwt.SigningMethodES256, jwt.SigningMethodES384, jwt.SigningMethodES512} {
			if m.CurveBits == k.Params().BitSize {
				return m, nil
			}
		}
	}
	return nil, fmt.Errorf("service account key: %T is not of RSA, P-256, P-384 or P-521", key)
}

// keyID names a public key, as upstream does.
func keyID(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("name service account key: %w", err)
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// SecretToken verifies the tokens in Secrets of type kubernetes.io/service-account-token, which are good as long as the Secret holds
// them and the service account exists. The Secret tells on which day that was last. A token of another issuer is nobody's.
func SecretToken(key *ecdsa.PublicKey, c client.Client, log *slog.Logger) func(ctx context.Context, token string) (*User, error) {
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithStrictDecoding())
	return func(ctx context.Context, token string) (*User, error) {
		said := &secretClaims{}
		if _, _, err := parser.ParseUnverified(token, said); err != nil || said.Issuer != secretIssuer {
			return nil, nil
		}
		if _, err := parser.ParseWithClaims(token, said, func(*jwt.Token) (any, error) { return key, nil }); err != nil {
			return nil, fmt.Errorf("verify service account token: %w", err)
		}
		s, err := said.holder(ctx, c, token)
		if err != nil {
			return nil, err
		}
		noteUse(ctx, c, s, log)
		return ServiceAccount(said.Namespace, said.Account, said.UID), nil
	}
}

// holder returns the Secret that holds token, after looking up the service account.
func (c *secretClaims) holder(ctx context.Context, get Getter, token string) (*corev1.Secret, error) {
	if c.Namespace == "" || c.Secret == "" || c.UID == "" || c.Subject != serviceAccountUser+c.Namespace+":"+c.Account {
		return nil, errors.New("verify service account token: claims do not name the subject")
	}
	o, err := get.Get(ctx, api.SecretKind, api.Key{Namespace: c.Namespace, Name: c.Secret})
	if apierrors.IsNotFound(err) {
		return nil, errors.New("secret has been deleted: the service account token is invalidated")
	}
	if err != nil {
		return nil, fmt.Errorf("look up secret of a service account token: %w", err)
	}
	s := o.(*corev1.Secret)
	if s.DeletionTimestamp != nil {
		return nil, errors.New("secret is being deleted: the service account token is invalidated")
	}
	if subtle.ConstantTimeCompare(s.Data[corev1.ServiceAccountTokenKey], []byte(token)) != 1 {
		return nil, fmt.Errorf("secret %s/%s holds another token: the service account token is invalidated", c.Namespace, c.Secret)
	}
	o, err = get.Get(ctx, api.ServiceAccountKind, api.Key{Namespace: c.Namespace, Name: c.Account})
	switch {
	case apierrors.IsNotFound(err), err == nil && o.GetDeletionTimestamp() != nil:
		return nil, errors.New("service account has been deleted: the service account token is invalidated")
	case err != nil:
		return nil, fmt.Errorf("look up service account of a service account token: %w", err)
	case o.GetUID() != c.UID:
		return nil, fmt.Errorf("service account UID (%s) does not match claim (%s)", o.GetUID(), c.UID)
	case s.Labels[invalidSince] != "":
		return nil, fmt.Errorf("the token in secret %s/%s for service account %s/%s has been marked invalid: use tokens of the TokenRequest API, "+
			"or remove the label %s from the secret to allow its use for the time being", c.Namespace, c.Secret, c.Namespace, c.Account, invalidSince)
	}
	return s, nil
}

// noteUse writes on s that its token was shown today.
func noteUse(ctx context.Context, c client.Client, s *corev1.Secret, log *slog.Logger) {
	now := time.Now().UTC()
	// Another server's clock may be past midnight already.
	if last := s.Labels[lastUsed]; last == now.Format(time.DateOnly) || last == now.AddDate(0, 0, 1).Format(time.DateOnly) {
		return
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": s.UID, "labels": map[string]string{lastUsed: now.Format(time.DateOnly)}}})
	if err == nil {
		_, err = c.Patch(ctx, api.SecretKind, api.KeyOf(s), client.Patch{Type: apitypes.MergePatchType, Data: patch})
	}
	if err != nil {
		// The request is none the worse for it, and the next one tries again.
		log.Warn("note the use of a service account token", "key", api.KeyOf(s).String(), "err", err)
	}
}
