// Package shim is the client of Yare's shim: the small process, one per pod
// sandbox, that is the parent of the sandbox's containers. It replaces
// containerd-shim-runc-v2, conmon and the pause container.
//
// # Vocabulary
//
//   - shim: the yare-init program in its shim role. It is the parent of every
//     container of one sandbox, so it reaps them and knows their exit status;
//     it lives in the sandbox's network, IPC and UTS namespaces and so holds
//     them; it owns the containers' standard streams and writes their logs.
//   - state directory (Config.Dir): shim.sock, the socket; shim.json, what
//     [Connect] needs; <id>/state.json, one per container; <id>/exit, the exit
//     record, synced before anyone hears of the exit.
//   - runtime: another OCI runtime's program that makes a container in place of
//     ours ([Runtime]). The shim differs in nothing but who makes the container:
//     it runs the program's create, start and exec, and as the subreaper of what
//     these leave behind it is the parent of the container's processes too.
//   - client: this package, in the server's process. It decides everything
//     (spec to plan, cgroup, seccomp program); the shim only executes.
//   - session: one Exec or Attach. It lives as long as the client's process:
//     its streams are pipes of the client, handed to the shim by descriptor.
//
// # Life and death
//
//	server --Start-->  shim born in its own session, cgroup and namespaces
//	server --Create--> cgroup made, plan sent, container init set up, waiting
//	server --Start-->  one byte to the init, which execs
//	server killed      shim and containers do not notice
//	                   (another runtime: "create" is run, then "start")
//	server --Connect-> Containers() tells states and exits that happened while away
//	server of another release --Connect-> containers are seen, signalled and
//	                   ended, and that is all ([Client.Outdated])
//	shim killed        Done() closes at once (socket hang-up); [Reap] kills the
//	                   leftovers by cgroup, has other runtimes delete what is theirs,
//	                   and frees what the state directory lists
//
// # Concurrency
//
// A Client's methods may be called from any goroutine. Requests of one client
// are carried out by the shim in order of arrival, but Create, Exec and Start
// of different containers overlap. Events come in the order in which the shim
// saw them.
package shim

import (
	"errors"
	"io"
	"log/slog"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/oci"
)

// Errors that a caller tells apart with errors.Is.
var (
	// ErrGone means that the shim process is dead (or was never there).
	ErrGone = errors.New("shim is gone")
	// ErrOutdated means that the shim is of another release and cannot be talked to; see [Client.Outdated].
	ErrOutdated = errors.New("the pod's shim is of another release: what runs in it goes on, and for anything new the pod must be deleted and made anew")
	// ErrNotFound means that the shim knows no such container or session.
	ErrNotFound = errors.New("no such container")
	// ErrExists means that the container or session identifier is taken.
	ErrExists = errors.New("already exists")
	// ErrState means that the container is not in the state that the call
	// needs: start of a started one, exec in a stopped one, delete of a
	// running one.
	ErrState = errors.New("wrong container state")
	// ErrNotExecutable means that the program is missing or cannot be executed.
	ErrNotExecutable = errors.New("not executable")
	// ErrTimeout means that ExecSync's timeout passed; the process was killed.
	ErrTimeout = errors.New("timed out")
)

// Config says how a sandbox's shim is born.
type Config struct {
	// Dir is the sandbox's state directory, absolute, created if missing
	// (mode 0700), removed by Shutdown. At most 90 bytes, because a socket's
	// path must fit in it.
	Dir string
	// Init is the container init program; one per server process is shared by
	// all shims. Required.
	Init *oci.Init
	// Cgroup is the shim's own cgroup, a path below every hierarchy's root
	// ("/kubepods/pod1/shim"). It must be a leaf. It is created if missing and
	// removed by Shutdown. Empty: the shim stays in the caller's cgroup, where
	// whoever kills the server's cgroup also kills the shim.
	Cgroup string
	// Namespaces of the sandbox.
	Namespaces Namespaces
	// Sysctls are namespaced sysctls ("net.ipv4.ip_unprivileged_port_start"),
	// written once in the sandbox's namespaces.
	Sysctls map[string]string
	// Foreign lets containers have a [Runtime] that is not ours.
	Foreign bool
	// Log receives warnings; required.
	Log *slog.Logger
}

// Namespaces are those that a sandbox's containers share. A zero field is the
// host's namespace.
type Namespaces struct {
	// Net is the path of the network namespace to live in.
	Net string
	// IPC makes a private System V IPC and POSIX message queue namespace.
	IPC bool
	// UTS makes a private UTS namespace with this Hostname.
	UTS      bool
	Hostname string
	// PID makes one PID namespace for all containers, with yare-init as
	// process 1 that reaps orphans (shareProcessNamespace).
	PID bool
	// Users, if not empty, is the folder of [oci.HoldUsers]: its namespaces of IPC and UTS are joined in place of making such,
	// and the PID namespace belongs to its user namespace. The shim itself stays in the host's.
	Users string
}

// CreateRequest describes a container.
//
// The container's namespaces are Spec.Linux.Namespaces as the OCI
// specification says: those with a path are joined, those without are made,
// those not named are the shim's (so the sandbox's network, IPC and UTS
// namespaces need not be listed at all).
type CreateRequest struct {
	// ID is unique in the sandbox: [A-Za-z0-9_.-]+, at most 128 bytes.
	ID string
	// Bundle is the bundle directory. Relative root paths are relative to it,
	// hooks are told it, and config.json is read from it when Spec is nil.
	Bundle string
	// Spec, when set, is used in place of Bundle's config.json. It is read
	// only and not retained after Create returns.
	Spec *specs.Spec
	// LogPath is the log file in the CRI format, opened for appending. Empty:
	// output goes only to attached sessions.
	LogPath string
	// Runtime makes the container in place of ours, if it is not nil. Then [Config.Foreign] and Spec.Linux.CgroupsPath are
	// required. It is kept with the container, for what is done to it later.
	Runtime *Runtime
	// Stdin keeps an input pipe open for attaching; without it, standard input
	// is /dev/null. StdinOnce closes it when the first attached session that
	// has an input ends.
	Stdin, StdinOnce bool
}

// ContainerState is where a container is in its life.
type ContainerState uint8

// The states, in their order. There is no way back.
const (
	Creating ContainerState = iota // the init is being set up
	Created                        // the init waits for Start
	Running                        // the container's own program runs
	Stopped                        // its first process ended
)

// ExitStatus is how a process ended.
type ExitStatus struct {
	// Code is the exit code, or 128+Signal.
	Code int
	// Signal is the signal that ended it, 0 for none.
	Signal syscall.Signal
	// OOM reports that the kernel killed a process of the container's cgroup
	// for lack of memory.
	OOM bool
	// At is when the shim reaped it (wall clock).
	At time.Time
}

// Status is one container as the shim knows it.
type Status struct {
	ID    string
	State ContainerState
	// Pid in the caller's PID namespace; kept after the exit.
	Pid int
	// CreatedAt and StartedAt are zero when that has not happened.
	CreatedAt, StartedAt time.Time
	// Exit is set when State is Stopped.
	Exit ExitStatus
	// Cgroup is the container's cgroup path below the hierarchies' roots.
	Cgroup string
}

// Event is a change that nobody asked for: a container's exit.
type Event struct {
	ID   string
	Exit ExitStatus
}

// Streams are the caller's ends of a session. Nil means not wanted. The
// session copies; it closes none of them.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize carries terminal sizes; the session ends regardless of it.
	Resize <-chan Size
}

// Size is a terminal's size in characters.
type Size struct{ Width, Height uint16 }

// ExecRequest describes a further process in a running container.
type ExecRequest struct {
	// ID is the container's.
	ID string
	// Process to run. Terminal, ConsoleSize, Args, Env, Cwd, User,
	// Capabilities, Rlimits, NoNewPrivileges, OOMScoreAdj and so on are
	// honoured as for a container; the seccomp program is that of the
	// container. Read only.
	Process *specs.Process
	// Streams of the process. With a terminal all output is on Stdout.
	Streams Streams
}
