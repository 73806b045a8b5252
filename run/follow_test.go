package run_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yare-dev/yare/run"
)

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "c")
		write := func(text string) {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("one")
		var taken []string
		c := run.Follow(file, []byte("one"), slog.New(slog.DiscardHandler), func(_ context.Context, text []byte) error {
			taken = append(taken, string(text))
			if string(text) == "bad" {
				return errors.New("no")
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx, func() {}) }()
		time.Sleep(5*time.Minute + 30*time.Second) // between two looks
		for _, text := range []string{"two", "bad", "two"} {
			write(text)
			time.Sleep(3 * time.Minute)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		write("three")
		time.Sleep(2 * time.Minute)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if want := []string{"two", "bad", "two", "three"}; !slices.Equal(taken, want) {
			t.Errorf("taken %q, want %q", taken, want)
		}
	})
}
