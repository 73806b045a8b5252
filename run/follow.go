package run

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"
)

// followEvery is how often a file is looked at, as upstream looks at its configuration files.
const followEvery = time.Minute

// Follow returns a Component that calls apply with what is in the file, each time that is not what it was before, known at
// first. What apply refuses is logged, and tried again only when the file has changed once more.
func Follow(file string, known []byte, log *slog.Logger, apply func(ctx context.Context, text []byte) error) Component {
	return Func(file, func(ctx context.Context, ready func()) error {
		ready()
		problem := ""
		for Pause(ctx, followEvery) == nil {
			text, err := os.ReadFile(file)
			switch {
			case err == nil && bytes.Equal(text, known):
				problem = ""
				continue
			case err == nil:
				known = text
				if err = apply(ctx, text); err == nil {
					log.Info("configuration file is read anew", "file", file)
				}
			}
			if err != nil && err.Error() != problem { // a file that is gone is told once
				problem = fmt.Sprint(err)
				log.Error("changed configuration file is not taken", "file", file, "err", err)
			}
		}
		return nil
	})
}
