// Package protocol is what a shim and its clients say to each other: datagrams
// on a seqpacket unix socket, with descriptors attached.
//
//	client                                  shim
//	  | Request{Serial, Verb, ...} + fds     |
//	  |------------------------------------->|
//	  |<----- Reply{Serial, ...} + fds ------|  one per request; a Create with
//	  |                                      |  hooks has a first one with Phase
//	  |<----- Reply{Serial: 0, Exit} --------|  an exit, to every client
//
// A container of another OCI runtime differs in that Create, Start and Exec name a Command for the shim to run.
//
// It is linked into yare-init: no fmt, no JSON.
package protocol

import "github.com/yare-dev/yare/oci/wire"

// Version is told in the reply to Hello. It changes when a field is added or
// changes its meaning; a client refuses a shim of another version except to
// Shutdown.
const Version = 3

// MaxMessage is the longest datagram.
const MaxMessage = 64 << 10

// Verb is what a request asks for.
type Verb uint8

// The verbs.
const (
	Hello Verb = iota + 1
	Create
	Continue // after the runtime hooks of a Create
	Abandon  // gives a Create up
	Start
	Kill
	Delete
	List
	Exec
	KillExec
	Attach
	Resize
	CloseStdin
	ReopenLog
	Shutdown
	Run // a Command that makes no process
)

// Code classifies a reply's error.
type Code uint8

// The codes.
const (
	OK Code = iota
	Failed
	NotFound
	Exists
	WrongState
	NotExecutable
)

// Request is a client's message.
type Request struct {
	Serial uint64
	Verb   Verb
	ID     string
	// Session names a process made by Exec. Of a List it is the Session of the reply before, whose rest is asked for; with an ID only that
	// container is.
	Session uint64

	Signal        int32
	Width, Height uint16

	// Create: the rest of Launch, and how its streams are kept.
	Launch              Launch
	LogPath             string
	Terminal            bool
	Stdin, StdinOnce    bool
	OOMFile, CgroupPath string
	// Streams of Exec and Attach: which of 0, 1, 2 are attached, as a mask.
	Streams uint8
	// Command of a Create, Start or Exec has another program do it; then there is no Launch.
	Command Command
	// Call is the serial of the Exec that a KillExec without a Session is about: one that was not answered yet.
	Call uint64
}

// Command is the program of another OCI runtime, with all its arguments. It is run with the process's own streams.
type Command struct {
	// Args[0] is the program's path. None: the shim does it itself.
	Args []string
	// PidFile is what it writes the number of the new process to.
	PidFile string
	// Console is the path of the socket that it sends a terminal's master to; empty: it makes no terminal.
	Console string
}

// Launch is what a new process is born with. Its descriptors are attached to
// the message in this order: plan, v2 cgroup directory if HasCgroup, Tasks
// files of v1 groups, namespaces to join, streams.
type Launch struct {
	CloneFlags uint64
	UIDs, GIDs []IDMap
	HasCgroup  bool
	Tasks      int
	// Join are the CLONE_NEW flags of the attached namespaces.
	Join []uint64
	// TimeOffsets and OOMScoreAdj are launch.Process's.
	TimeOffsets []string
	OOMScoreAdj *int32
}

// IDMap is one line of a user namespace's mapping.
type IDMap struct{ Container, Host, Size int }

// Reply is a shim's message.
type Reply struct {
	Serial uint64
	Code   Code
	Error  string
	// Phase is set in the first reply to a Create with runtime hooks: the
	// namespaces exist, the client is to run them and to send Continue.
	Phase    bool
	Warnings []string
	Pid      int
	Session  uint64
	Version  int
	// Reaper is process 1 of the shared PID namespace, in the reply to Hello.
	Reaper int
	// List has what fits. Where there is more the reply has a Session. One without may have all, and more than was asked for: shims had no pieces once.
	List []Container
	// Exit is set in messages with Serial 0: of the container ID, or of the
	// Session if that is set.
	ID   string
	Exit Exit
}

// Exit is how a process ended.
type Exit struct {
	Code   int32
	Signal int32
	OOM    bool
	At     int64 // nanoseconds since 1970
}

// Container is one container's state.
type Container struct {
	ID               string
	State            uint8
	Pid              int
	Created, Started int64
	Exit             Exit
	Cgroup           string
}

// Config is what a shim is started with.
type Config struct {
	Dir      string
	Hostname string
	Sysctls  []Sysctl
	SharePID bool
	// Users is the user namespace that the shared PID namespace belongs to; empty: the host's.
	Users string
	// Subreaper makes orphans the shim's children: what another runtime's program leaves behind.
	Subreaper bool
}

// Sysctl is a name with slashes, and a value.
type Sysctl struct{ Name, Value string }

// Fields implements wire.Message.
func (r *Request) Fields(c *wire.Codec) {
	c.Uint64(&r.Serial)
	wire.Num(c, &r.Verb)
	c.String(&r.ID)
	c.Uint64(&r.Session)
	wire.Num(c, &r.Signal)
	wire.Num(c, &r.Width)
	wire.Num(c, &r.Height)
	l := &r.Launch
	c.Uint64(&l.CloneFlags)
	for _, maps := range []*[]IDMap{&l.UIDs, &l.GIDs} {
		wire.List(c, maps, func(m *IDMap) {
			wire.Num(c, &m.Container)
			wire.Num(c, &m.Host)
			wire.Num(c, &m.Size)
		})
	}
	c.Bool(&l.HasCgroup)
	wire.Num(c, &l.Tasks)
	wire.Nums(c, &l.Join)
	c.Strings(&l.TimeOffsets)
	wire.Optional(c, &l.OOMScoreAdj, func(n *int32) { wire.Num(c, n) })
	c.String(&r.LogPath)
	c.Bool(&r.Terminal)
	c.Bool(&r.Stdin)
	c.Bool(&r.StdinOnce)
	c.String(&r.OOMFile)
	c.String(&r.CgroupPath)
	wire.Num(c, &r.Streams)
	c.Strings(&r.Command.Args)
	c.String(&r.Command.PidFile)
	c.String(&r.Command.Console)
	c.Uint64(&r.Call)
}

// Fields implements wire.Message.
func (r *Reply) Fields(c *wire.Codec) {
	c.Uint64(&r.Serial)
	wire.Num(c, &r.Code)
	c.String(&r.Error)
	c.Bool(&r.Phase)
	c.Strings(&r.Warnings)
	wire.Num(c, &r.Pid)
	c.Uint64(&r.Session)
	wire.Num(c, &r.Version)
	wire.Num(c, &r.Reaper)
	wire.List(c, &r.List, func(k *Container) {
		c.String(&k.ID)
		wire.Num(c, &k.State)
		wire.Num(c, &k.Pid)
		wire.Num(c, &k.Created)
		wire.Num(c, &k.Started)
		k.Exit.Fields(c)
		c.String(&k.Cgroup)
	})
	c.String(&r.ID)
	r.Exit.Fields(c)
}

// Fields implements wire.Message.
func (e *Exit) Fields(c *wire.Codec) {
	wire.Num(c, &e.Code)
	wire.Num(c, &e.Signal)
	c.Bool(&e.OOM)
	wire.Num(c, &e.At)
}

// Fields implements wire.Message.
func (f *Config) Fields(c *wire.Codec) {
	c.String(&f.Dir)
	c.String(&f.Hostname)
	wire.List(c, &f.Sysctls, func(s *Sysctl) { c.String(&s.Name); c.String(&s.Value) })
	c.Bool(&f.SharePID)
	c.String(&f.Users)
	c.Bool(&f.Subreaper)
}
