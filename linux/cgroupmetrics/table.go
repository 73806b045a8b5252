// Package cgroupmetrics reads what cgroups have used, under the names that cAdvisor gave these figures and that everybody's dashboards and
// alerts have known since. It replaces cAdvisor's container/libcontainer and metrics.
//
//   - metric: a name with its help, type and labels of its own (cpu, device, ...); whose figures they are is for the reader's user to say.
//   - group: the directories of one cgroup by controller, "" being the v2 one, of cgroup v2, v1, or a hybrid host's of both.
//
// Invariants: a figure that the kernel does not have is left out, never zero. A metric's name, help, type and labels are cAdvisor's, and so is what is
// counted, but for container_memory_failcnt on v2 (how often memory.max was met; cAdvisor has 0) and container_oom_events_total, which is the kernel's own
// count (cAdvisor's is of messages in the kernel's log, and begins anew with it). One reading is some twenty small files; there is no walk and nothing
// is sampled in the background.
//
// For that reason these are left out, of those that upstream's kubelet shows: container_sockets (reading every descriptor of every process),
// container_file_descriptors before Linux 6.2 (listing them), container_blkio_device_usage_total (the fs_ metrics by another name, which kube-prometheus drops),
// container_health_state (of Docker's checks), and of a device what the kernel counts only for some schedulers, all zero in cAdvisor on today's
// kernels: container_fs_{sector_reads,sector_writes,reads_merged,writes_merged}_total, container_fs_{read,write,io_time,io_time_weighted}_seconds_total, container_fs_io_current,
// container_fs_io_cost_*_seconds_total. Applications' own metrics (cAdvisor's AppMetrics) are Prometheus' to scrape.
package cgroupmetrics

// Metric is a name with what belongs to it.
type Metric struct {
	Name, Help string
	Counter    bool
	// Nano says that the values are nanoseconds, where the name says seconds.
	Nano   bool
	Labels []string
}

// Value is a figure; Labels are the values of its metric's.
type Value struct {
	*Metric
	Labels []string
	Value  uint64
}

// The rows of the table.
const (
	lastSeen = iota
	creationTime
	startTime
	cpuUsage
	cpuUser
	cpuSystem
	cfsPeriods
	cfsThrottledPeriods
	cfsThrottled
	cfsBurstPeriods
	cfsBurst
	specPeriod
	specQuota
	specShares
	specMemory
	specReservation
	specSwap
	memoryCache
	memoryRSS
	memoryKernel
	memoryMapped
	memorySwap
	memoryFailcnt
	memoryUsage
	memoryMax
	memoryWorkingSet
	memoryActiveFile
	memoryInactiveFile
	memoryFailures
	memoryEventsHigh
	memoryEventsMax
	memoryDirty
	memoryWriteback
	memoryScanned
	memoryStolen
	memoryRefaultFile
	memoryRefaultAnon
	oomEvents
	fsInodesFree
	fsInodes
	fsLimit
	fsUsage
	fsReadBytes
	fsReads
	fsWriteBytes
	fsWrites
	processes
	fileDescriptors
	threads
	threadsMax
	ulimits
	cpuStalled
	cpuWaiting
	memoryStalled
	memoryWaiting
	ioStalled
	ioWaiting
	receiveBytes
	receivePackets
	receiveDropped
	receiveErrors
	transmitBytes
	transmitPackets
	transmitDropped
	transmitErrors
	rows
)

var (
	device = []string{"device"}
	link   = []string{"interface"}
)

// table is read-only.
var table = [rows]Metric{
	lastSeen:     {Name: "container_last_seen", Help: "Last time a container was seen by the exporter"},
	creationTime: {Name: "container_creation_time_seconds", Help: "Container creation time since unix epoch in seconds."},
	startTime:    {Name: "container_start_time_seconds", Help: "Start time of the container since unix epoch in seconds."},

	cpuUsage:            {Name: "container_cpu_usage_seconds_total", Help: "Cumulative cpu time consumed in seconds.", Counter: true, Nano: true, Labels: []string{"cpu"}},
	cpuUser:             {Name: "container_cpu_user_seconds_total", Help: "Cumulative user cpu time consumed in seconds.", Counter: true, Nano: true},
	cpuSystem:           {Name: "container_cpu_system_seconds_total", Help: "Cumulative system cpu time consumed in seconds.", Counter: true, Nano: true},
	cfsPeriods:          {Name: "container_cpu_cfs_periods_total", Help: "Number of elapsed enforcement period intervals.", Counter: true},
	cfsThrottledPeriods: {Name: "container_cpu_cfs_throttled_periods_total", Help: "Number of throttled period intervals.", Counter: true},
	cfsThrottled:        {Name: "container_cpu_cfs_throttled_seconds_total", Help: "Total time duration the container has been throttled.", Counter: true, Nano: true},
	cfsBurstPeriods:     {Name: "container_cpu_cfs_burst_periods_total", Help: "Number of periods when burst occurs.", Counter: true},
	cfsBurst:            {Name: "container_cpu_cfs_burst_seconds_total", Help: "Total time duration the container has been bursted.", Counter: true, Nano: true},

	specPeriod:      {Name: "container_spec_cpu_period", Help: "CPU period of the container."},
	specQuota:       {Name: "container_spec_cpu_quota", Help: "CPU quota of the container."},
	specShares:      {Name: "container_spec_cpu_shares", Help: "CPU share of the container."},
	specMemory:      {Name: "container_spec_memory_limit_bytes", Help: "Memory limit for the container."},
	specReservation: {Name: "container_spec_memory_reservation_limit_bytes", Help: "Memory reservation limit for the container."},
	specSwap:        {Name: "container_spec_memory_swap_limit_bytes", Help: "Memory swap limit for the container."},

	memoryCache:        {Name: "container_memory_cache", Help: "Number of bytes of page cache memory."},
	memoryRSS:          {Name: "container_memory_rss", Help: "Size of RSS in bytes."},
	memoryKernel:       {Name: "container_memory_kernel_usage", Help: "Size of kernel memory allocated in bytes."},
	memoryMapped:       {Name: "container_memory_mapped_file", Help: "Size of memory mapped files in bytes."},
	memorySwap:         {Name: "container_memory_swap", Help: "Container swap usage in bytes."},
	memoryFailcnt:      {Name: "container_memory_failcnt", Help: "Number of memory usage hits limits", Counter: true},
	memoryUsage:        {Name: "container_memory_usage_bytes", Help: "Current memory usage in bytes, including all memory regardless of when it was accessed"},
	memoryMax:          {Name: "container_memory_max_usage_bytes", Help: "Maximum memory usage recorded in bytes"},
	memoryWorkingSet:   {Name: "container_memory_working_set_bytes", Help: "Current working set in bytes."},
	memoryActiveFile:   {Name: "container_memory_total_active_file_bytes", Help: "Current total active file in bytes."},
	memoryInactiveFile: {Name: "container_memory_total_inactive_file_bytes", Help: "Current total inactive file in bytes."},
	memoryFailures:     {Name: "container_memory_failures_total", Help: "Cumulative count of memory allocation failures.", Counter: true, Labels: []string{"failure_type", "scope"}},
	memoryEventsHigh:   {Name: "container_memory_events_high_total", Help: "Cumulative count of memory.high throttle events for the container", Counter: true},
	memoryEventsMax:    {Name: "container_memory_events_max_total", Help: "Cumulative count of memory.max limit hit events for the container", Counter: true},
	memoryDirty:        {Name: "container_memory_file_dirty_bytes", Help: "Number of bytes of file cache that has been modified but not yet written back to disk."},
	memoryWriteback:    {Name: "container_memory_file_writeback_bytes", Help: "Number of bytes of file cache that is currently being written back to disk."},
	memoryScanned:      {Name: "container_memory_pgscan_total", Help: "Cumulative number of pages scanned by the page reclaim algorithm.", Counter: true},
	memoryStolen:       {Name: "container_memory_pgsteal_total", Help: "Cumulative number of pages reclaimed by the page reclaim algorithm.", Counter: true},
	memoryRefaultFile:  {Name: "container_memory_workingset_refault_file_total", Help: "Cumulative number of refaults of previously evicted file pages.", Counter: true},
	memoryRefaultAnon:  {Name: "container_memory_workingset_refault_anon_total", Help: "Cumulative number of refaults of previously evicted anonymous pages.", Counter: true},
	oomEvents:          {Name: "container_oom_events_total", Help: "Count of out of memory events observed for the container", Counter: true},

	fsInodesFree: {Name: "container_fs_inodes_free", Help: "Number of available Inodes", Labels: device},
	fsInodes:     {Name: "container_fs_inodes_total", Help: "Number of Inodes", Labels: device},
	fsLimit:      {Name: "container_fs_limit_bytes", Help: "Number of bytes that can be consumed by the container on this filesystem.", Labels: device},
	fsUsage:      {Name: "container_fs_usage_bytes", Help: "Number of bytes that are consumed by the container on this filesystem.", Labels: device},
	fsReadBytes:  {Name: "container_fs_reads_bytes_total", Help: "Cumulative count of bytes read", Counter: true, Labels: device},
	fsReads:      {Name: "container_fs_reads_total", Help: "Cumulative count of reads completed", Counter: true, Labels: device},
	fsWriteBytes: {Name: "container_fs_writes_bytes_total", Help: "Cumulative count of bytes written", Counter: true, Labels: device},
	fsWrites:     {Name: "container_fs_writes_total", Help: "Cumulative count of writes completed", Counter: true, Labels: device},

	processes:       {Name: "container_processes", Help: "Number of processes running inside the container."},
	fileDescriptors: {Name: "container_file_descriptors", Help: "Number of open file descriptors for the container."},
	threads:         {Name: "container_threads", Help: "Number of threads running inside the container"},
	threadsMax:      {Name: "container_threads_max", Help: "Maximum number of threads allowed inside the container, infinity if value is zero"},
	ulimits:         {Name: "container_ulimits_soft", Help: "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice", Labels: []string{"ulimit"}},

	cpuStalled:    {Name: "container_pressure_cpu_stalled_seconds_total", Help: "Total time duration no tasks in the container could make progress due to CPU congestion.", Counter: true, Nano: true},
	cpuWaiting:    {Name: "container_pressure_cpu_waiting_seconds_total", Help: "Total time duration tasks in the container have waited due to CPU congestion.", Counter: true, Nano: true},
	memoryStalled: {Name: "container_pressure_memory_stalled_seconds_total", Help: "Total time duration no tasks in the container could make progress due to memory congestion.", Counter: true, Nano: true},
	memoryWaiting: {Name: "container_pressure_memory_waiting_seconds_total", Help: "Total time duration tasks in the container have waited due to memory congestion.", Counter: true, Nano: true},
	ioStalled:     {Name: "container_pressure_io_stalled_seconds_total", Help: "Total time duration no tasks in the container could make progress due to IO congestion.", Counter: true, Nano: true},
	ioWaiting:     {Name: "container_pressure_io_waiting_seconds_total", Help: "Total time duration tasks in the container have waited due to IO congestion.", Counter: true, Nano: true},

	receiveBytes:    {Name: "container_network_receive_bytes_total", Help: "Cumulative count of bytes received", Counter: true, Labels: link},
	receivePackets:  {Name: "container_network_receive_packets_total", Help: "Cumulative count of packets received", Counter: true, Labels: link},
	receiveDropped:  {Name: "container_network_receive_packets_dropped_total", Help: "Cumulative count of packets dropped while receiving", Counter: true, Labels: link},
	receiveErrors:   {Name: "container_network_receive_errors_total", Help: "Cumulative count of errors encountered while receiving", Counter: true, Labels: link},
	transmitBytes:   {Name: "container_network_transmit_bytes_total", Help: "Cumulative count of bytes transmitted", Counter: true, Labels: link},
	transmitPackets: {Name: "container_network_transmit_packets_total", Help: "Cumulative count of packets transmitted", Counter: true, Labels: link},
	transmitDropped: {Name: "container_network_transmit_packets_dropped_total", Help: "Cumulative count of packets dropped while transmitting", Counter: true, Labels: link},
	transmitErrors:  {Name: "container_network_transmit_errors_total", Help: "Cumulative count of errors encountered while transmitting", Counter: true, Labels: link},
}

// All returns every metric that there may be values of.
func All() []*Metric {
	all := make([]*Metric, 0, rows)
	for i := range table {
		all = append(all, &table[i])
	}
	return all
}
