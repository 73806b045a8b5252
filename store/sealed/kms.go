package sealed

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/util/uuid"
	envelope "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2"
	kms "k8s.io/kms/apis/v2"
)

const (
	// statusEvery is how often the service is asked which key it uses, statusTrust for how long an answer counts when there
	// is no other.
	statusEvery = time.Minute
	statusTrust = 3 * time.Minute
	// seedsKept is how many opened seeds are kept.
	seedsKept = 1000
)

// service seals values with keys derived from a seed, which a key management service seals. It is asked once when the
// server starts to write, when its key changes, and for each seed that values come with.
type service struct {
	client  kms.KeyManagementServiceClient
	timeout time.Duration
	close   func() error

	health sync.Mutex // held while asking how it is, so that it is done once
	probed time.Time
	ill    error

	mu      sync.Mutex
	current *seed
	checked time.Time
	opened  map[[32]byte]transformer
}

// seed is what new values are sealed with.
type seed struct {
	derived
	keyID       string
	sealed      []byte
	annotations map[string][]byte
}

func dial(endpoint string, timeout time.Duration) (*service, error) {
	// It is on this machine: when it is back it is to be noticed soon.
	soon := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}
	c, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon, MinConnectTimeout: timeout}))
	if err != nil {
		return nil, err
	}
	return &service{client: kms.NewKeyManagementServiceClient(c), timeout: timeout, close: c.Close, opened: map[[32]byte]transformer{}}, nil
}

// writer returns the seed to write with, a new one where the service uses another key now.
func (s *service) writer(ctx context.Context) (*seed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil && time.Since(s.checked) < statusEvery {
		return s.current, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	how, err := s.client.Status(ctx, &kms.StatusRequest{})
	if err == nil {
		err = well(how)
	}
	if err == nil && s.current != nil && how.KeyId == s.current.keyID {
		s.checked = time.Now()
		return s.current, nil
	}
	if err == nil {
		var next *seed
		if next, err = s.generate(ctx); err == nil {
			s.current, s.checked = next, time.Now()
			return next, nil
		}
	}
	if s.current != nil && time.Since(s.checked) < statusTrust {
		return s.current, nil
	}
	return nil, fmt.Errorf("ask key management service: %w", err)
}

// generate makes a seed.
// Preconditions: s.mu is held.
func (s *service) generate(ctx context.Context) (*seed, error) {
	text := make([]byte, 32)
	if _, err := rand.Read(text); err != nil {
		return nil, err
	}
	a, err := s.client.Encrypt(ctx, &kms.EncryptRequest{Plaintext: text, Uid: string(uuid.NewUUID())})
	if err != nil {
		return nil, err
	}
	next := &seed{derived{text}, a.KeyId, a.Ciphertext, a.Annotations}
	// What is written with it comes back by the watch, and must be read even if the service has gone away meanwhile.
	s.keep(sealOf(&envelope.EncryptedObject{EncryptedDEKSourceType: envelope.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED,
		KeyID: a.KeyId, EncryptedDEKSource: a.Ciphertext, Annotations: a.Annotations}), next.derived)
	return next, nil
}

// keep notes what opens the values of a seal.
// Preconditions: s.mu is held.
func (s *service) keep(seal [32]byte, t transformer) {
	if len(s.opened) >= seedsKept {
		clear(s.opened)
	}
	s.opened[seal] = t
}

func (s *service) seal(ctx context.Context, key string, plain []byte) ([]byte, error) {
	w, err := s.writer(ctx)
	if err != nil {
		return nil, err
	}
	text, err := w.seal(ctx, key, plain)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&envelope.EncryptedObject{EncryptedData: text, KeyID: w.keyID, EncryptedDEKSource: w.sealed, Annotations: w.annotations,
		EncryptedDEKSourceType: envelope.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED})
}

func (s *service) open(ctx context.Context, key string, data []byte) ([]byte, bool, error) {
	var o envelope.EncryptedObject
	if err := proto.Unmarshal(data, &o); err != nil {
		return nil, false, fmt.Errorf("read envelope: %w", err)
	}
	t, err := s.reader(ctx, &o)
	if err != nil {
		return nil, false, err
	}
	plain, _, err := t.open(ctx, key, o.EncryptedData)
	s.mu.Lock()
	defer s.mu.Unlock()
	return plain, s.current != nil && s.current.keyID != o.KeyID, err
}

// sealOf tells the seeds of envelopes apart.
func sealOf(o *envelope.EncryptedObject) [32]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d %q %q", o.EncryptedDEKSourceType, o.KeyID, o.EncryptedDEKSource)
	for _, name := range slices.Sorted(maps.Keys(o.Annotations)) {
		fmt.Fprintf(h, " %q %q", name, o.Annotations[name])
	}
	return [32]byte(h.Sum(nil))
}

// errAway says that a key management service could not be asked: what is sealed by it may be whole.
var errAway = errors.New("key management service does not answer")

// away makes err one of the service itself, unless it is its answer about what it was asked to open.
func away(err error) error {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted, codes.Aborted:
		return fmt.Errorf("%w: %w", errAway, err)
	}
	return err
}

// reader returns what opens the values of an envelope like o.
func (s *service) reader(ctx context.Context, o *envelope.EncryptedObject) (transformer, error) {
	id := sealOf(o)
	s.mu.Lock()
	t := s.opened[id]
	s.mu.Unlock()
	if t != nil {
		return t, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	a, err := s.client.Decrypt(ctx, &kms.DecryptRequest{Ciphertext: o.EncryptedDEKSource, KeyId: o.KeyID, Annotations: o.Annotations, Uid: string(uuid.NewUUID())})
	if err != nil {
		return nil, fmt.Errorf("failed to decrypt DEK, error: %w", away(err))
	}
	switch o.EncryptedDEKSourceType {
	case envelope.EncryptedDEKSourceType_HKDF_SHA256_XNONCE_AES_GCM_SEED:
		t = derived{a.Plaintext}
	case envelope.EncryptedDEKSourceType_AES_GCM_KEY:
		if t, err = newGCM(a.Plaintext); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("unknown sort of envelope %v", o.EncryptedDEKSourceType)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(id, t)
	return t, nil
}
