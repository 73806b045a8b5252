package memory

import (
	"testing"

	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/storetest"
)

func TestBackend(t *testing.T) {
	t.Parallel()
	storetest.Backend(t, func(*testing.T) store.Backend { return New(true) })
}
