package rest_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// What the database refuses a plug-in is no refusal of the plug-in's.
func TestAdmissionDatabase(t *testing.T) {
	for err, want := range map[error]int32{
		store.ErrFull: http.StatusInsufficientStorage, store.ErrUnavailable: http.StatusServiceUnavailable, store.ErrUnknown: http.StatusInternalServerError,
		store.ErrConflict: http.StatusConflict, fmt.Errorf("no"): http.StatusForbidden,
	} {
		plugin := rest.Admission{Name: "p", Validate: func(context.Context, *rest.Admitting) error { return fmt.Errorf("reserve: %w", err) }}
		bubble(t, store.Options{}, []rest.Admission{plugin}, func(b *bench) {
			_, got := b.Create(b.ctx, request(configMaps, ""), configMap("c"))
			if st, ok := got.(apierrors.APIStatus); !ok || st.Status().Code != want {
				t.Errorf("%v: %v, want %d", err, got, want)
			}
		})
	}
}
