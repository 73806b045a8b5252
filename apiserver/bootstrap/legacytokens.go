package bootstrap

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// tracking is the ConfigMap that says since when this cluster takes note of the use of service account tokens that are kept in
// Secrets: controllers that remove unused ones count from that day.
var tracking = api.Key{Namespace: metav1.NamespaceSystem, Name: "kube-apiserver-legacy-service-account-token-tracking"}

const (
	trackedSince = "since"
	dayFormat    = time.DateOnly
)

// track ensures that the ConfigMap names a day.
func (b *Bootstrap) track(ctx context.Context) error {
	today := time.Now().UTC().Format(dayFormat)
	return ensure(ctx, b.client, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: tracking.Namespace, Name: tracking.Name},
		Data:       map[string]string{trackedSince: today},
	}, func(now, want *corev1.ConfigMap) {
		if _, err := time.Parse(dayFormat, now.Data[trackedSince]); err == nil {
			return
		}
		if now.Data == nil {
			now.Data = map[string]string{}
		}
		now.Data[trackedSince] = want.Data[trackedSince]
	})
}
