package sealed

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/crypto/nacl/secretbox"
)

// transformer encrypts the value of a key of the database. The key goes into the seal, so that values cannot be moved.
type transformer interface {
	seal(ctx context.Context, key string, plain []byte) ([]byte, error)
	// open returns the value, and whether it would be written otherwise now.
	open(ctx context.Context, key string, data []byte) (plain []byte, stale bool, err error)
}

var errShort = errors.New("the stored data was shorter than the required size")

// identity does nothing. It does not take the encrypted for the plain.
type identity struct{}

func (identity) seal(_ context.Context, _ string, plain []byte) ([]byte, error) { return plain, nil }

func (identity) open(_ context.Context, _ string, data []byte) ([]byte, bool, error) {
	if bytes.HasPrefix(data, []byte("k8s:enc:")) {
		return nil, false, errors.New("identity transformer tried to read encrypted data")
	}
	return data, false, nil
}

// gcm is AES-GCM with a random nonce: nonce, then sealed text.
type gcm struct{ aead cipher.AEAD }

func newGCM(key []byte) (transformer, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	a, err := cipher.NewGCM(b)
	if err != nil {
		return nil, err
	}
	return gcm{a}, nil
}

func (g gcm) seal(_ context.Context, key string, plain []byte) ([]byte, error) {
	nonce := make([]byte, g.aead.NonceSize(), g.aead.NonceSize()+len(plain)+g.aead.Overhead())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return g.aead.Seal(nonce, nonce, plain, []byte(key)), nil
}

func (g gcm) open(_ context.Context, key string, data []byte) ([]byte, bool, error) {
	n := g.aead.NonceSize()
	if len(data) < n {
		return nil, false, errShort
	}
	plain, err := g.aead.Open(nil, data[:n], data[n:], []byte(key))
	return plain, false, err
}

// cbc is AES-CBC with PKCS#7 padding: initial vector, then text. It is not authenticated.
type cbc struct{ block cipher.Block }

func (c cbc) seal(_ context.Context, _ string, plain []byte) ([]byte, error) {
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	out := make([]byte, aes.BlockSize+len(plain)+pad)
	if _, err := rand.Read(out[:aes.BlockSize]); err != nil {
		return nil, err
	}
	text := out[aes.BlockSize:]
	copy(text, plain)
	copy(text[len(plain):], bytes.Repeat([]byte{byte(pad)}, pad))
	cipher.NewCBCEncrypter(c.block, out[:aes.BlockSize]).CryptBlocks(text, text)
	return out, nil
}

func (c cbc) open(_ context.Context, _ string, data []byte) ([]byte, bool, error) {
	if len(data) < 2*aes.BlockSize || len(data)%aes.BlockSize != 0 {
		return nil, false, errShort
	}
	text := make([]byte, len(data)-aes.BlockSize)
	cipher.NewCBCDecrypter(c.block, data[:aes.BlockSize]).CryptBlocks(text, data[aes.BlockSize:])
	pad := int(text[len(text)-1])
	if pad == 0 || pad > aes.BlockSize || !bytes.Equal(text[len(text)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
		return nil, false, errors.New("invalid padding on input")
	}
	return text[:len(text)-pad], false, nil
}

// box is XSalsa20 and Poly1305: nonce, then sealed text.
type box struct{ key [32]byte }

func (b box) seal(_ context.Context, _ string, plain []byte) ([]byte, error) {
	var nonce [24]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return nil, err
	}
	return secretbox.Seal(nonce[:], plain, &nonce, &b.key), nil
}

func (b box) open(_ context.Context, _ string, data []byte) ([]byte, bool, error) {
	if len(data) < 24+secretbox.Overhead {
		return nil, false, errShort
	}
	plain, ok := secretbox.Open(nil, data[24:], (*[24]byte)(data[:24]), &b.key)
	if !ok {
		return nil, false, errors.New("the data was not sealed with this key")
	}
	return plain, false, nil
}

// infoSize is how much of a value derives its key from a seed.
const infoSize = 32

// derived is AES-GCM with a key of its own for each value, derived from a seed: so that one seed can seal any number.
type derived struct{ seed []byte }

func (d derived) with(info []byte) (transformer, error) {
	key, err := hkdf.Expand(sha256.New, d.seed, string(info), 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return newGCM(key)
}

func (d derived) seal(ctx context.Context, key string, plain []byte) ([]byte, error) {
	info := make([]byte, infoSize)
	if _, err := rand.Read(info); err != nil {
		return nil, err
	}
	t, err := d.with(info)
	if err != nil {
		return nil, err
	}
	out, err := t.seal(ctx, key, plain)
	return append(info, out...), err
}

func (d derived) open(ctx context.Context, key string, data []byte) ([]byte, bool, error) {
	if len(data) < infoSize {
		return nil, false, errShort
	}
	t, err := d.with(data[:infoSize])
	if err != nil {
		return nil, false, err
	}
	return t.open(ctx, key, data[infoSize:])
}
