package shim

import (
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// shimScore is what kubelets give to processes that the pod's containers are not to outlive: the kernel, out of memory, takes all others first. Without it
// a shim, which is in its pod's cgroup, would be taken before a guaranteed pod's containers (-997), and they with it.
const shimScore = -999

var unprotected sync.Once

// protect keeps processes of a new shim from being killed for lack of memory, where the host lets us.
func protect(log *slog.Logger, pids ...int) {
	for _, pid := range pids {
		if pid == 0 {
			continue
		}
		err := linux.WriteFile(unix.AT_FDCWD, scoreFile(pid), strconv.Itoa(shimScore))
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			unprotected.Do(func() {
				log.Warn("shims are not protected from being killed for lack of memory, which takes CAP_SYS_RESOURCE", "err", err)
			})
		} else if err != nil {
			log.Warn("shim not protected from being killed for lack of memory", "err", err)
		}
	}
}

func scoreFile(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/oom_score_adj" }

// scored is the process with a score of its own: it is not to inherit its shim's protection.
func (c *Client) scored(p *specs.Process) *specs.Process {
	b, err := os.ReadFile(scoreFile(c.pid))
	if err != nil {
		return p // the shim is dead
	}
	return ownScore(p, strings.TrimSpace(string(b)))
}

// ownScore is scored, with what would be inherited. Of that only protection is taken away, for which nobody needs privileges.
func ownScore(p *specs.Process, inherited string) *specs.Process {
	if p == nil || p.OOMScoreAdj != nil || !strings.HasPrefix(inherited, "-") {
		return p
	}
	own := *p
	own.OOMScoreAdj = new(int)
	return &own
}
