package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/yare-dev/yare/api"
)

// Issuer is the issuer and the default audience of service account tokens.
const Issuer = "https://kubernetes.default.svc.cluster.local"

// serviceAccountUser opens the names of service accounts' users.
const serviceAccountUser = "system:serviceaccount:"

// terminationGrace is how long after a Pod's or Secret's deletion began its tokens are still good.
const terminationGrace = 60 * time.Second

// errForeignToken says that a token is not one of ours to judge.
var errForeignToken = errors.New("token of another issuer")

// Getter reads the objects that tokens are bound to; a client.Reader is one.
type Getter interface {
	Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error)
}

// TokenConfig makes Tokens.
type TokenConfig struct {
	Key       *ecdsa.PrivateKey
	Issuer    string   // Issuer when empty
	Audiences []string // of the API server itself; the issuer when empty
}

// Tokens issues and verifies service account tokens: JWTs signed with ES256, good only as long as the service account
// and what they are bound to exist under the same UIDs.
type Tokens struct {
	config TokenConfig
	kid    string
	get    Getter
	parser *jwt.Parser
	// seen are tokens whose signature was found good, by hash. What a token is bound to is looked up each time nevertheless.
	seen Remembered[[sha256.Size]byte, *claims]
}

// Ref is a name with a UID inside a token.
type Ref struct {
	Name string    `json:"name,omitempty"`
	UID  types.UID `json:"uid,omitempty"`
}

// Bound is what a token is for.
type Bound struct {
	Namespace      string `json:"namespace,omitempty"`
	ServiceAccount Ref    `json:"serviceaccount"`
	Pod            *Ref   `json:"pod,omitempty"`
	Secret         *Ref   `json:"secret,omitempty"`
	Node           *Ref   `json:"node,omitempty"`
}

type claims struct {
	jwt.RegisteredClaims
	Kubernetes *Bound `json:"kubernetes.io,omitempty"`
}

// NewTokens returns Tokens that look objects up with get.
func NewTokens(c TokenConfig, get Getter) (*Tokens, error) {
	if c.Issuer == "" {
		c.Issuer = Issuer
	}
	if len(c.Audiences) == 0 {
		c.Audiences = []string{c.Issuer}
	}
	kid, err := keyID(c.Key.Public())
	if err != nil {
		return nil, err
	}
	return &Tokens{
		config: c, get: get, kid: kid,
		parser: jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(c.Issuer),
			jwt.WithExpirationRequired(), jwt.WithStrictDecoding()),
	}, nil
}

// Audiences returns the audiences of the API server. It is read-only.
func (t *Tokens) Audiences() []string { return t.config.Audiences }

// Issue returns a token for b and audiences (the API server's when empty) that ends after life, and when that is.
func (t *Tokens) Issue(b Bound, audiences []string, life time.Duration) (token string, expires time.Time, err error) {
	if len(audiences) == 0 {
		audiences = t.config.Audiences
	}
	now := time.Now()
	expires = now.Add(life)
	j := jwt.NewWithClaims(jwt.SigningMethodES256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: t.config.Issuer, Subject: serviceAccountUser + b.Namespace + ":" + b.ServiceAccount.Name,
			Audience: audiences, ID: string(uuid.NewUUID()),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(expires),
		},
		Kubernetes: &b,
	})
	j.Header["kid"] = t.kid
	if token, err = j.SignedString(t.config.Key); err != nil {
		return "", time.Time{}, fmt.Errorf("sign token: %w", err)
	}
	return token, expires, nil
}

// Authenticate implements Authenticator for bearer tokens, which must be for the API server.
func (t *Tokens) Authenticate(r *http.Request) (*User, error) {
	token := bearer(r)
	if token == "" {
		return nil, nil
	}
	user, _, err := t.Verify(r.Context(), token, t.config.Audiences)
	if errors.Is(err, errForeignToken) {
		return nil, errors.New("invalid bearer token")
	}
	return user, err
}

// Verify returns the user of a token and those of audiences that it is for, at least one.
func (t *Tokens) Verify(ctx context.Context, token string, audiences []string) (*User, []string, error) {
	c, err := t.claims(token)
	if err != nil {
		return nil, nil, err
	}
	b := c.Kubernetes
	if b == nil || c.Subject != serviceAccountUser+b.Namespace+":"+b.ServiceAccount.Name {
		return nil, nil, errors.New("verify service account token: claims do not name the subject")
	}
	var both []string
	for _, a := range audiences {
		if slices.Contains(c.Audience, a) {
			both = append(both, a)
		}
	}
	if len(both) == 0 {
		return nil, nil, fmt.Errorf("token audiences %q is invalid for the target audiences %q", []string(c.Audience), audiences)
	}
	if err := t.checkBound(ctx, b); err != nil {
		return nil, nil, err
	}
	return b.user(c.ID), both, nil
}

// claims returns what a token says, after checking who signed it and its times.
func (t *Tokens) claims(token string) (*claims, error) {
	sum := sha256.Sum256([]byte(token))
	if c, ok := t.seen.Get(sum); ok {
		return c, nil
	}
	c := &claims{}
	_, err := t.parser.ParseWithClaims(token, c, func(*jwt.Token) (any, error) { return &t.config.Key.PublicKey, nil })
	if errors.Is(err, jwt.ErrTokenMalformed) || errors.Is(err, jwt.ErrTokenInvalidIssuer) {
		return nil, errForeignToken
	}
	if err != nil {
		return nil, fmt.Errorf("verify service account token: %w", err)
	}
	t.seen.Put(sum, c, c.ExpiresAt.Time)
	return c, nil
}

// checkBound looks up what b names.
func (t *Tokens) checkBound(ctx context.Context, b *Bound) error {
	if err := t.same(ctx, "service account", api.ServiceAccountKind, b.Namespace, &b.ServiceAccount); err != nil {
		return err
	}
	if err := t.same(ctx, "pod", api.PodKind, b.Namespace, b.Pod); err != nil {
		return err
	}
	if err := t.same(ctx, "secret", api.SecretKind, b.Namespace, b.Secret); err != nil {
		return err
	}
	// A node that a pod's token merely mentions may be gone before the pod is.
	if b.Pod != nil {
		return nil
	}
	return t.same(ctx, "node", api.NodeKind, "", b.Node)
}

func (t *Tokens) same(ctx context.Context, what string, k *api.Kind, namespace string, ref *Ref) error {
	if ref == nil {
		return nil
	}
	o, err := t.get.Get(ctx, k, api.Key{Namespace: namespace, Name: ref.Name})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%s has been deleted: the service account token is invalidated", what)
	}
	if err != nil {
		return fmt.Errorf("look up %s of a service account token: %w", what, err)
	}
	if o.GetUID() != ref.UID {
		return fmt.Errorf("%s UID (%s) does not match claim (%s)", what, o.GetUID(), ref.UID)
	}
	if d := o.GetDeletionTimestamp(); d != nil && time.Now().After(d.Add(terminationGrace)) {
		return fmt.Errorf("%s has been deleted: the service account token is invalidated", what)
	}
	return nil
}

// user is who a token for b speaks as.
func (b *Bound) user(id string) *User {
	u := ServiceAccount(b.Namespace, b.ServiceAccount.Name, b.ServiceAccount.UID)
	u.Extra = map[string][]string{}
	if id != "" {
		u.Extra[CredentialID] = []string{"JTI=" + id}
	}
	add := func(what string, r *Ref) {
		if r == nil {
			return
		}
		u.Extra["authentication.kubernetes.io/"+what+"-name"] = []string{r.Name}
		if r.UID != "" {
			u.Extra["authentication.kubernetes.io/"+what+"-uid"] = []string{string(r.UID)}
		}
	}
	add("pod", b.Pod)
	add("node", b.Node)
	return u
}

// ServiceAccount returns the user of a service account.
func ServiceAccount(namespace, name string, uid types.UID) *User {
	return &User{
		Name: serviceAccountUser + namespace + ":" + name, UID: string(uid),
		Groups: []string{ServiceAccounts, ServiceAccounts + ":" + namespace, Authenticated},
	}
}

// ParseServiceAccount returns the service account that a user name stands for.
func ParseServiceAccount(user string) (key api.Key, ok bool) {
	rest, ok := strings.CutPrefix(user, serviceAccountUser)
	if !ok {
		return api.Key{}, false
	}
	namespace, name, ok := strings.Cut(rest, ":")
	if !ok || namespace == "" || name == "" || strings.Contains(name, ":") {
		return api.Key{}, false
	}
	return api.Key{Namespace: namespace, Name: name}, true
}

// BoundTo returns the reference for a pod, secret or node that a token is bound to.
func BoundTo(o api.Object) *Ref { return &Ref{Name: o.GetName(), UID: o.GetUID()} }

// bearer returns the token of r's Authorization header, or of a WebSocket's protocol list.
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	if strings.EqualFold(scheme, "bearer") {
		return strings.TrimSpace(token)
	}
	for p := range protocols(r.Header) {
		if enc, ok := strings.CutPrefix(p, tokenProtocol); ok {
			if data, err := base64.RawURLEncoding.DecodeString(enc); err == nil {
				return string(data)
			}
			return enc // a bad token, not none
		}
	}
	return ""
}

// Browsers cannot set headers on WebSockets. They offer a protocol that has the token in its name.
const (
	protocolHeader = "Sec-Websocket-Protocol"
	tokenProtocol  = "base64url.bearer.authorization.k8s.io."
)

// protocols are those that a client offers for its WebSocket.
func protocols(h http.Header) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, list := range h[protocolHeader] {
			for p := range strings.SplitSeq(list, ",") {
				if !yield(strings.TrimSpace(p)) {
					return
				}
			}
		}
	}
}

// DropTokens deletes what bearer reads: a token that was shown to this server is nothing for those behind it.
func DropTokens(h http.Header) {
	h.Del("Authorization")
	if len(h[protocolHeader]) == 0 {
		return
	}
	var others []string
	for p := range protocols(h) {
		if !strings.HasPrefix(p, tokenProtocol) {
			others = append(others, p)
		}
	}
	h.Del(protocolHeader)
	if len(others) > 0 {
		h.Set(protocolHeader, strings.Join(others, ", "))
	}
}
