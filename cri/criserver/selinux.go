package criserver

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux/selinux"
)

// categories is how many categories policies have. Two of them make a level.
const categories = 1024

// labels gives pods and containers their SELinux contexts. It is nil where that is off, and pods' selinuxOptions mean nothing then.
type labels struct {
	usual selinux.Usual
	// check says whether the policy has a context.
	check func(selinux.Context) error

	mu     sync.Mutex
	levels map[string]int // by level: how many sandboxes have it
}

// openLabels finds out what the host's policy means for containers.
func openLabels() (*labels, error) {
	if !selinux.Enabled() {
		return nil, fmt.Errorf("this host has no SELinux, or has it disabled")
	}
	usual, err := selinux.FindUsual()
	if err != nil {
		return nil, err
	}
	for _, c := range []selinux.Context{usual.Process, usual.File} {
		if err := selinux.Check(c); err != nil {
			return nil, err
		}
	}
	return newLabels(usual, selinux.Check), nil
}

func newLabels(usual selinux.Usual, check func(selinux.Context) error) *labels {
	return &labels{usual: usual, check: check, levels: map[string]int{}}
}

// take gives a sandbox its level: the one that it asks for, or else one of two categories that no other sandbox has, so that pods do not reach each
// other's files.
func (l *labels) take(asked *runtimeapi.SELinuxOption) string {
	if l == nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	level := asked.GetLevel()
	// Of half a million levels, a node has some hundred: the first is mostly free.
	for level == "" && l.usual.Process.Level != "" {
		a, b := rand.IntN(categories), rand.IntN(categories)
		sensitivity, _, _ := strings.Cut(l.usual.Process.Level, ":")
		if free := fmt.Sprintf("%s:c%d,c%d", sensitivity, min(a, b), max(a, b)); a != b && l.levels[free] == 0 {
			level = free
		}
	}
	l.levels[level]++
	return level
}

// keep notes the level of a sandbox that was there before.
func (l *labels) keep(level string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.levels[level]++
}

// free takes a level back.
func (l *labels) free(level string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.levels[level]--; l.levels[level] <= 0 {
		delete(l.levels, level)
	}
}

// label is what a container's processes and files are labelled with; empty for not at all.
type label struct {
	Process string
	// File is the context of what the container has for itself, FileContext the same in its parts.
	File        string
	FileContext selinux.Context
}

// of returns the contexts that options make of the usual ones, with the sandbox's level where they name none. A privileged process is not given one: it
// runs under the one that the policy has for what a runtime starts.
func (l *labels) of(o *runtimeapi.SELinuxOption, level string, privileged bool) (label, error) {
	if l == nil {
		return label{}, nil
	}
	level = cmp.Or(o.GetLevel(), level)
	process, file := l.usual.Process, l.usual.File
	process.User, process.Role, process.Type = cmp.Or(o.GetUser(), process.User), cmp.Or(o.GetRole(), process.Role), cmp.Or(o.GetType(), process.Type)
	file.User = cmp.Or(o.GetUser(), file.User)
	process.Level, file.Level = cmp.Or(level, process.Level), cmp.Or(level, file.Level)
	for what, c := range map[string]selinux.Context{"processes": process, "files": file} {
		if err := l.check(c); err != nil {
			return label{}, fmt.Errorf("selinux_options, for %s: %w", what, err)
		}
	}
	out := label{Process: process.String(), File: file.String(), FileContext: file}
	if privileged {
		out.Process = ""
	}
	return out, nil
}

// ofSandbox returns the contexts of what a sandbox's containers share.
func (s *Server) ofSandbox(r *sandboxRecord) (label, error) {
	return s.labels.of(r.Config.GetLinux().GetSecurityContext().GetSelinuxOptions(), r.Level, false)
}

// ofContainer returns a container's contexts. What it does not say is its pod's.
func (s *Server) ofContainer(r *sandboxRecord, sc *runtimeapi.LinuxContainerSecurityContext) (label, error) {
	o := sc.GetSelinuxOptions()
	if o == nil {
		o = r.Config.GetLinux().GetSecurityContext().GetSelinuxOptions()
	}
	return s.labels.of(o, r.Level, sc.GetPrivileged())
}
