// Package capability translates between the names and the bits of Linux
// capabilities.
package capability

import "strings"

// names in the order of their bits.
func names() []string {
	return strings.Fields(`
		CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID
		SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER
		SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
		SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
		MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF
		CHECKPOINT_RESTORE`)
}

// Names returns the names of capabilities 0 to last, "CAP_CHOWN" first.
func Names(last int) []string {
	list := names()
	list = list[:min(last+1, len(list))]
	for i := range list {
		list[i] = "CAP_" + list[i]
	}
	return list
}

// Bit returns the number of a capability, "CAP_NET_ADMIN" in any case, the
// prefix being optional.
func Bit(name string) (int, bool) {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	for i, n := range names() {
		if n == name {
			return i, true
		}
	}
	return 0, false
}
