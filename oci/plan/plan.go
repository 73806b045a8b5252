// Package plan is what yare-init executes: an OCI spec after every decision
// has been taken. Package compile makes plans, oci/init carries them out.
//
// A plan is plain data: numbers are kernel flags and ids, never names. It
// reaches the init in a sealed memory file as descriptor [PlanFD] + the number
// of preserved descriptors.
package plan

import "github.com/yare-dev/yare/oci/wire"

// Descriptors of an init when it is executed, each moved up by the number of
// descriptors that are preserved for the container's program. 0, 1 and 2 are
// the program's standard streams, or /dev/null where Terminal is set.
const (
	PlanFD  = 3 // the plan, a sealed memory file
	SyncFD  = 4 // seqpacket socket to the launcher
	StartFD = 5 // one byte read from it starts the program; only containers
	FirstFD = 6 // what Container.Mounts and Process.JoinMount count from
)

// First bytes of the messages on SyncFD.
const (
	// MsgHooks: namespaces and mounts are made, the root is not yet pivoted.
	// The init waits for one byte while the launcher runs the runtime hooks.
	MsgHooks byte = 'h'
	// MsgConsole carries the terminal's master as a descriptor.
	MsgConsole byte = 'c'
	// MsgReady: only Start and exec are left.
	MsgReady byte = 'r'
	// MsgWarning is followed by text: something that could not be done and
	// that the container can live without.
	MsgWarning byte = 'w'
	// MsgError is followed by text; the init exits.
	MsgError byte = 'e'
	// MsgListener carries the seccomp listener as a descriptor. The init waits
	// for one byte, which says that the agent has it.
	MsgListener byte = 'l'
	// MsgEnter comes from the launcher, to an init whose plan says Late: its
	// descriptors are the tasks files of the v1 groups to enter.
	MsgEnter byte = 'n'
	// MsgExec is MsgError for the program itself: it was not found (exit code
	// 127) or cannot be executed (126).
	MsgExec byte = 'x'
	// End of file: the program has been exec'ed.
)

// Container is the plan of a container's first process.
type Container struct {
	Process Process

	// Root is the root file system's directory, absolute.
	Root         string
	RootReadonly bool
	// RootPropagation is set on the new root after pivoting (MS_ flags, 0: private).
	RootPropagation uint64
	// HostPropagation is set on all inherited mounts before anything else.
	HostPropagation uint64
	NoPivot         bool
	// Shared says that the mount namespace is not the container's own: nothing
	// of it but the root is touched, and the root is only changed to.
	Shared bool
	// RootFD and MountNS, if not 0, count from FirstFD: the root as a detached
	// mount, a mount namespace to join.
	RootFD, MountNS int32
	// Late says that the init is started before all of its cgroup is made: it
	// waits for MsgEnter before it does anything, but for its network namespace,
	// which it makes before if NewNetwork says so.
	Late, NewNetwork bool
	// Outcome, if not 0, counts from FirstFD: where an error after the start
	// is written to when nobody listens on SyncFD any more.
	Outcome int32

	Mounts   []Mount
	Devices  []Device
	Links    []Link // below the root, made unless something is there
	Masked   []string
	Readonly []string
	Sysctls  []Setting

	Hostname, Domainname string
	NewCgroupNS          bool

	// Hooks that run in the container's namespaces, and the state that they read.
	WaitHooks                       bool
	CreateContainer, StartContainer []Hook
	// State is what hooks read without its pid and status, which only the init
	// knows: a JSON object after its opening brace.
	State []byte
}

// Process is the plan of any process in a container.
type Process struct {
	Args, Env []string
	Cwd       string
	UID, GID  uint32
	Groups    []uint32
	Umask     int32 // -1: unchanged

	// Capability sets as bit masks.
	Bounding, Effective, Permitted, Inheritable, Ambient uint64
	NoNewPrivs                                           bool
	Rlimits                                              []Rlimit
	OOMScoreAdj                                          *int32

	Terminal      bool
	Width, Height uint16

	// Seccomp is the BPF program, eight bytes an instruction in host byte
	// order; empty: none.
	Seccomp      []byte
	SeccompFlags uint32
	// Notify says that the filter asks an agent: its listener is sent out.
	Notify bool

	Personality *uint32
	Scheduler   *Scheduler
	IOPriority  *int32
	Memory      *MemoryPolicy
	// CPUs is a bit mask of the processors to run on; empty: unchanged.
	CPUs []uint64
	// FirstCPUs is the same before the process is in its cgroup, for the
	// launcher. Warnings are too: what could not be granted. They are not sent.
	FirstCPUs []uint64
	Warnings  []string
	// AppArmor profile and SELinux label to exec under.
	AppArmor, SELinux string

	// Preserve counts the descriptors from 3 on that the program gets.
	Preserve int32
	// JoinMount says that FirstFD is a process whose mount and cgroup namespaces are to be joined (exec).
	JoinMount bool
	// Keyring says that the process gets a session keyring of its own, as keyctl(2) has it, and not ours, in which others may
	// have keys.
	Keyring bool
	// SetGroups is false where the user namespace denies setgroups.
	SetGroups bool
}

// Mount is one mount below the root, in order.
type Mount struct {
	Target string
	// Type is a file system type, "" for a bind mount of Source, or Remount.
	Type, Source string
	Options      []Setting
	// Set and Clear are MOUNT_ATTR_ flags of the mount itself, RecSet and
	// RecClear of all mounts below it too.
	Set, Clear, RecSet, RecClear uint64
	Propagation, RecPropagation  uint64 // MS_ flags, 0: leave
	Recursive                    bool   // bind what is mounted below too
	// FD, if not 0, counts from FirstFD: the source as a detached mount, made
	// by the launcher where the init may not.
	FD int32
	// CopyUp fills a tmpfs with what the target has.
	CopyUp bool
	// NoFollow mounts on the target itself if it is a symbolic link.
	NoFollow bool
	// Label is the SELinux context that a directory gets once it is mounted.
	Label string
}

// Remount as a Mount's type changes the attributes, and with Options the file
// system's parameters, of what is already there.
const Remount = "remount"

// Device is a device node, or a bind mount of the host's where Bind is set.
type Device struct {
	Path     string
	Mode     uint32 // type and permission bits
	Dev      uint64
	UID, GID uint32
	Bind     bool
}

// Link is a symbolic link.
type Link struct{ Path, Target string }

// Setting is a name and a value.
type Setting struct{ Key, Value string }

// Rlimit is a resource limit.
type Rlimit struct {
	Resource   int32
	Soft, Hard uint64
}

// Scheduler is what sched_setattr takes.
type Scheduler struct {
	Policy                    uint32
	Flags                     uint64
	Nice                      int32
	Priority                  uint32
	Runtime, Deadline, Period uint64
}

// MemoryPolicy is what set_mempolicy takes; Nodes is a bit mask.
type MemoryPolicy struct {
	Mode  uint32
	Nodes []uint64
}

// Hook is a program to run with the container's state as its input.
type Hook struct {
	Path      string
	Args, Env []string
	Timeout   int32 // seconds, 0: none
}

// Fields implements wire.Message.
func (p *Container) Fields(c *wire.Codec) {
	p.Process.Fields(c)
	c.String(&p.Root)
	c.Bool(&p.RootReadonly)
	c.Uint64(&p.RootPropagation)
	c.Uint64(&p.HostPropagation)
	c.Bool(&p.NoPivot)
	c.Bool(&p.Shared)
	wire.Num(c, &p.RootFD)
	wire.Num(c, &p.MountNS)
	c.Bool(&p.Late)
	c.Bool(&p.NewNetwork)
	wire.Num(c, &p.Outcome)
	wire.List(c, &p.Mounts, func(m *Mount) { m.fields(c) })
	wire.List(c, &p.Devices, func(d *Device) { d.fields(c) })
	wire.List(c, &p.Links, func(l *Link) { c.String(&l.Path); c.String(&l.Target) })
	c.Strings(&p.Masked)
	c.Strings(&p.Readonly)
	settings(c, &p.Sysctls)
	c.String(&p.Hostname)
	c.String(&p.Domainname)
	c.Bool(&p.NewCgroupNS)
	c.Bool(&p.WaitHooks)
	hooks(c, &p.CreateContainer)
	hooks(c, &p.StartContainer)
	c.Bytes(&p.State)
}

// Fields implements wire.Message.
func (p *Process) Fields(c *wire.Codec) {
	c.Strings(&p.Args)
	c.Strings(&p.Env)
	c.String(&p.Cwd)
	wire.Num(c, &p.UID)
	wire.Num(c, &p.GID)
	wire.Nums(c, &p.Groups)
	wire.Num(c, &p.Umask)
	for _, set := range []*uint64{&p.Bounding, &p.Effective, &p.Permitted, &p.Inheritable, &p.Ambient} {
		c.Uint64(set)
	}
	c.Bool(&p.NoNewPrivs)
	wire.List(c, &p.Rlimits, func(r *Rlimit) {
		wire.Num(c, &r.Resource)
		c.Uint64(&r.Soft)
		c.Uint64(&r.Hard)
	})
	wire.Optional(c, &p.OOMScoreAdj, func(n *int32) { wire.Num(c, n) })
	c.Bool(&p.Terminal)
	wire.Num(c, &p.Width)
	wire.Num(c, &p.Height)
	c.Bytes(&p.Seccomp)
	wire.Num(c, &p.SeccompFlags)
	c.Bool(&p.Notify)
	wire.Optional(c, &p.Personality, func(n *uint32) { wire.Num(c, n) })
	wire.Optional(c, &p.Scheduler, func(s *Scheduler) { s.fields(c) })
	wire.Optional(c, &p.IOPriority, func(n *int32) { wire.Num(c, n) })
	wire.Optional(c, &p.Memory, func(m *MemoryPolicy) { wire.Num(c, &m.Mode); wire.Nums(c, &m.Nodes) })
	wire.Nums(c, &p.CPUs)
	c.String(&p.AppArmor)
	c.String(&p.SELinux)
	wire.Num(c, &p.Preserve)
	c.Bool(&p.JoinMount)
	c.Bool(&p.Keyring)
	c.Bool(&p.SetGroups)
}

func (m *Mount) fields(c *wire.Codec) {
	c.String(&m.Target)
	c.String(&m.Type)
	c.String(&m.Source)
	settings(c, &m.Options)
	for _, n := range []*uint64{&m.Set, &m.Clear, &m.RecSet, &m.RecClear, &m.Propagation, &m.RecPropagation} {
		c.Uint64(n)
	}
	c.Bool(&m.Recursive)
	wire.Num(c, &m.FD)
	c.Bool(&m.CopyUp)
	c.Bool(&m.NoFollow)
	c.String(&m.Label)
}

func (d *Device) fields(c *wire.Codec) {
	c.String(&d.Path)
	wire.Num(c, &d.Mode)
	c.Uint64(&d.Dev)
	wire.Num(c, &d.UID)
	wire.Num(c, &d.GID)
	c.Bool(&d.Bind)
}

func (s *Scheduler) fields(c *wire.Codec) {
	wire.Num(c, &s.Policy)
	c.Uint64(&s.Flags)
	wire.Num(c, &s.Nice)
	wire.Num(c, &s.Priority)
	c.Uint64(&s.Runtime)
	c.Uint64(&s.Deadline)
	c.Uint64(&s.Period)
}

func settings(c *wire.Codec, list *[]Setting) {
	wire.List(c, list, func(s *Setting) { c.String(&s.Key); c.String(&s.Value) })
}

func hooks(c *wire.Codec, list *[]Hook) {
	wire.List(c, list, func(h *Hook) {
		c.String(&h.Path)
		c.Strings(&h.Args)
		c.Strings(&h.Env)
		wire.Num(c, &h.Timeout)
	})
}
