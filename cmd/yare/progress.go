package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

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

// nameFlag is what a command needs to mean the cluster: nothing for the default one.
func nameFlag(name string) string {
	if name == cluster.DefaultName {
		return ""
	}
	return " --name " + name
}

// hint says what can be done with a running cluster.
func (p *progress) hint(r *cluster.Record) {
	flag := nameFlag(r.Name)
	fmt.Fprintln(p.w)
	w := tabwriter.NewWriter(p.w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "  yare kubectl --context %s get nodes\tthe cluster's objects (or your own kubectl)\n", r.Context())
	fmt.Fprintf(w, "  yare image build-from DIR --tag NAME%s\tan image from a folder\n", flag)
	fmt.Fprintf(w, "  yare status%s\tcomponents, health, memory\n", flag)
	fmt.Fprintf(w, "  yare down%s\tend it and remove every trace\n", flag)
	w.Flush()
}
