package cgroup

import (
	"time"

	"github.com/opencontainers/cgroups"
)

// Stats measures the group.
func (g *Group) Stats() (*Stats, error) {
	s := &Stats{At: time.Now()}
	err := g.with("measure", func(m cgroups.Manager) error {
		raw, err := m.GetStats()
		if err != nil {
			return err
		}
		s.cpu(&raw.CpuStats)
		s.memory(&raw.MemoryStats, g.unified)
		s.Pids = PidsStats{Current: raw.PidsStats.Current, Limit: raw.PidsStats.Limit}
		s.IOPSI = psi(raw.BlkioStats.PSI)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Stats) cpu(c *cgroups.CpuStats) {
	s.CPU = CPUStats{
		Usage:            time.Duration(c.CpuUsage.TotalUsage),
		User:             time.Duration(c.CpuUsage.UsageInUsermode),
		System:           time.Duration(c.CpuUsage.UsageInKernelmode),
		Periods:          c.ThrottlingData.Periods,
		ThrottledPeriods: c.ThrottlingData.ThrottledPeriods,
		Throttled:        time.Duration(c.ThrottlingData.ThrottledTime),
		PSI:              psi(c.PSI),
	}
}

// names are the keys of memory.stat.
type names struct{ anon, cache, inactive, faults, major string }

func (s *Stats) memory(m *cgroups.MemoryStats, unified bool) {
	n := names{"total_rss", "total_cache", "total_inactive_file", "total_pgfault", "total_pgmajfault"}
	if unified {
		n = names{"anon", "file", "inactive_file", "pgfault", "pgmajfault"}
	}
	s.Memory = MemoryStats{
		Usage: m.Usage.Usage, Anon: m.Stats[n.anon], Cache: m.Stats[n.cache],
		Faults: m.Stats[n.faults], MajorFaults: m.Stats[n.major], PSI: psi(m.PSI),
	}
	if m.SwapUsage.Usage > m.Usage.Usage { // counts memory too
		s.Memory.Swap = m.SwapUsage.Usage - m.Usage.Usage
	}
	if inactive := m.Stats[n.inactive]; inactive < m.Usage.Usage {
		s.Memory.WorkingSet = m.Usage.Usage - inactive
	}
	// The kernel says "unlimited" as the largest page-aligned number.
	if m.Usage.Limit < 1<<62 {
		s.Memory.Limit = m.Usage.Limit
	}
}

func psi(p *cgroups.PSIStats) *PSI {
	if p == nil {
		return nil
	}
	line := func(d cgroups.PSIData) PSILine {
		return PSILine{Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300, Total: time.Duration(d.Total) * time.Microsecond}
	}
	return &PSI{Some: line(p.Some), Full: line(p.Full)}
}

// Stats are a group's counters at a moment. Sizes are in bytes, times as
// durations since the group was made.
type Stats struct {
	At     time.Time
	CPU    CPUStats
	Memory MemoryStats
	Pids   PidsStats
	IOPSI  *PSI // nil where the kernel has none
}

// CPUStats is the processor time used.
type CPUStats struct {
	Usage, User, System       time.Duration
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
	PSI                       *PSI // nil where the kernel has none
}

// MemoryStats is the memory charged.
type MemoryStats struct {
	Usage       uint64 // everything charged, page cache included
	WorkingSet  uint64 // Usage less inactive file pages
	Anon        uint64 // anonymous memory ("rss")
	Cache       uint64 // file pages
	Swap        uint64
	Limit       uint64 // 0: unlimited
	Faults      uint64
	MajorFaults uint64
	PSI         *PSI
}

// PidsStats counts processes and threads.
type PidsStats struct{ Current, Limit uint64 }

// PSI is pressure stall information: shares of time in percent, and totals.
type PSI struct{ Some, Full PSILine }

// PSILine is one line of it.
type PSILine struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}
