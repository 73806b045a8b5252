package authn

import (
	"context"
	"crypto/subtle"
	"fmt"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

const (
	bootstrapUser   = "system:bootstrap:"
	bootstrapGroup  = "system:bootstrappers"
	bootstrapSecret = "bootstrap-token-"
	bootstrapType   = "bootstrap.kubernetes.io/token"
)

var (
	bootstrapToken      = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)
	bootstrapExtraGroup = regexp.MustCompile(`^system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]$`)
)

// BootstrapToken verifies the tokens with which new nodes introduce themselves: Secrets in kube-system. A token that is not good is nobody's.
func BootstrapToken(get Getter) func(ctx context.Context, token string) (*User, error) {
	return func(ctx context.Context, token string) (*User, error) {
		parts := bootstrapToken.FindStringSubmatch(token)
		if parts == nil {
			return nil, nil
		}
		o, err := get.Get(ctx, api.SecretKind, api.Key{Namespace: metav1.NamespaceSystem, Name: bootstrapSecret + parts[1]})
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("look up bootstrap token: %w", err)
		}
		return bootstrapper(o.(*corev1.Secret), parts[1], parts[2], time.Now()), nil
	}
}

// bootstrapper is the user of the token id.secret that s describes, nil where it is not good.
func bootstrapper(s *corev1.Secret, id, secret string, now time.Time) *User {
	if s.DeletionTimestamp != nil || s.Type != bootstrapType || subtle.ConstantTimeCompare(s.Data["token-secret"], []byte(secret)) != 1 ||
		string(s.Data["token-id"]) != id || string(s.Data["usage-bootstrap-authentication"]) != "true" {
		return nil
	}
	if end := s.Data["expiration"]; len(end) > 0 {
		if t, err := time.Parse(time.RFC3339, string(end)); err != nil || !now.Before(t) {
			return nil
		}
	}
	u := &User{Name: bootstrapUser + id, Groups: []string{bootstrapGroup}}
	if extra := string(s.Data["auth-extra-groups"]); extra != "" {
		for g := range strings.SplitSeq(extra, ",") {
			if !bootstrapExtraGroup.MatchString(g) {
				return nil
			}
			if !u.In(g) {
				u.Groups = append(u.Groups, g)
			}
		}
	}
	return u
}
