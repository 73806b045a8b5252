package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/yare-dev/yare/cmd/cluster"
)

// progress tells a person how far a long command is: one line that changes on a terminal, plain lines elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	open     bool // an unfinished line is on the terminal
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// step says what is happening or has just happened.
func (p *progress) step(what string) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K  %s", what)
		p.open = true
		return
	}
	fmt.Fprintf(p.w, "  %s\n", what)
}

// done says what came of it.
func (p *progress) done(format string, args ...any) {
	if p.open {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.open = false
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

// hint says what can be done with a running cluster.
func (p *progress) hint(r *cluster.Record) {
	flag := ""
	if r.Name != cluster.DefaultName {
		flag = " --name " + r.Name
	}
	fmt.Fprintf(p.w, `
  yare kubectl --context %[2]s get nodes       the cluster's objects (or your own kubectl)
  yare image build-from DIR --tag NAME%[1]s    an image from a folder
  yare status%[1]s                             components, health, memory
  yare down%[1]s                               end it and remove every trace
`, flag, r.Context())
}
