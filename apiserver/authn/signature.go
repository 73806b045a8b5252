package authn

import (
	"crypto/sha256"
	"sync"
	"time"
)

// maxSignatures bounds how many tokens are remembered: a pod has one.
const maxSignatures = 4096

// signatures remembers tokens whose signature was found good, by hash, since checking one costs more than the rest of a
// small request. What a token is bound to is looked up each time nevertheless.
type signatures struct {
	mu     sync.RWMutex
	claims map[[sha256.Size]byte]*claims
}

// get returns the claims of a token that was put and has not ended, else nil.
func (s *signatures) get(token string, now time.Time) *claims {
	h := sha256.Sum256([]byte(token))
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.claims[h]
	if c == nil || !now.Before(c.ExpiresAt.Time) {
		return nil
	}
	return c
}

// put remembers a good token. When there are too many all are forgotten, which costs each one check.
func (s *signatures) put(token string, c *claims) {
	h := sha256.Sum256([]byte(token))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.claims == nil || len(s.claims) >= maxSignatures {
		s.claims = map[[sha256.Size]byte]*claims{}
	}
	s.claims[h] = c
}
