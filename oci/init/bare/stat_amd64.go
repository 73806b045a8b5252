package bare

import "golang.org/x/sys/unix"

const fstatat = unix.SYS_NEWFSTATAT
