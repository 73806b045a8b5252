package rest

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/yare-dev/yare/api"
)

// What admission took as it was sent is not settled a second time.
func TestAfterAdmission(t *testing.T) {
	settled := 0
	r := &Request{Any: Any{r: &erased{custom: &Custom{Settle: func(api.Object, bool) error { settled++; return nil }}}}}
	for _, tt := range []struct {
		taken bool
		want  int
	}{{false, 0}, {true, 1}} {
		if err := r.afterAdmission(&Admitting{Object: &unstructured.Unstructured{}, taken: tt.taken}); err != nil || settled != tt.want {
			t.Errorf("changed %v: settled %d times, %v", tt.taken, settled, err)
		}
	}
}
