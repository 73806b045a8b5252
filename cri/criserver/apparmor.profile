# What a container may do that is not privileged and asks for no profile of its own. It is given by the administrator's
# capabilities, namespaces, read-only mounts and seccomp what it can do; this takes away once more what would reach the host
# if one of these had a hole. Nothing is included, so that it means the same on every host.
profile NAME flags=(attach_disconnected, mediate_deleted) {
  file,
  network,
  capability,
  umount,

  # Mounting could show the files below at other places.
  deny mount,

  # Whoever may send a signal is decided where it comes from. Containers reach each other as far as they see each other.
  signal (receive),
  signal (send) peer=NAME,
  ptrace (trace, tracedby, read, readby) peer=NAME,

  # The kernel's settings and its memory. Of /proc, what belongs to processes stays writable, and of /proc/sys what
  # belongs to the container's own IPC namespace.
  deny /proc/* w,
  deny /proc/[^0-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{?,??,[^s]**,s[^h]**,sh[^m]**} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/{mem,kmem,kcore} rwklx,

  # Of /sys, cgroups alone.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
}
