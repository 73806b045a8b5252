package seccomp

import (
	"strings"
	"testing"
)

func TestDefault(t *testing.T) {
	t.Parallel()
	plain, admin := Default(nil), Default([]string{"CAP_SYS_ADMIN"})
	const denied = retErrno | eperm
	for _, tc := range []struct {
		name         string
		args         []uint64
		plain, admin uint32
	}{
		{"read", nil, retAllow, retAllow},
		{"openat2", nil, retAllow, retAllow},
		{"mount", nil, denied, retAllow},
		{"fsopen", nil, denied, retAllow},
		{"move_mount", nil, denied, retAllow},
		{"unshare", nil, denied, retAllow},
		{"keyctl", nil, denied, denied},
		{"add_key", nil, denied, denied},
		{"kexec_load", nil, denied, denied},
		{"io_uring_setup", nil, denied, denied},
		{"userfaultfd", nil, denied, denied},
		{"socket", []uint64{2}, retAllow, retAllow},
		{"socket", []uint64{16}, retAllow, retAllow},
		{"socket", []uint64{afALG}, denied, denied},
		{"socket", []uint64{39}, retAllow, retAllow},
		{"socket", []uint64{afVSOCK}, denied, denied},
		{"socket", []uint64{44}, retAllow, retAllow},
		{"clone", []uint64{0x1200011}, retAllow, retAllow},
		{"clone", []uint64{0x10000000}, denied, retAllow}, // CLONE_NEWUSER
		{"clone3", nil, retErrno | enosys, retAllow},
		{"personality", []uint64{0}, retAllow, retAllow},
		{"personality", []uint64{0x0040000}, denied, denied}, // ADDR_NO_RANDOMIZE
	} {
		nr := uint32(table()[tc.name][0])
		if got := run(t, plain, auditX86_64, nr, tc.args...); got != tc.plain {
			t.Errorf("%s%v: got %#x, want %#x", tc.name, tc.args, got, tc.plain)
		}
		if got := run(t, admin, auditX86_64, nr, tc.args...); got != tc.admin {
			t.Errorf("%s%v with CAP_SYS_ADMIN: got %#x, want %#x", tc.name, tc.args, got, tc.admin)
		}
	}
}

// TestDefaultNames finds misspelt system calls.
func TestDefaultNames(t *testing.T) {
	t.Parallel()
	newer := " epoll_ctl_old epoll_wait_old futex_requeue uretprobe "
	for line := range strings.Lines(defaultText) {
		_, list, ok := strings.Cut(line, ":")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		for _, name := range strings.Fields(list) {
			if _, ok := table()[name]; !ok && !strings.Contains(newer, " "+name+" ") {
				t.Errorf("%s: no such system call", name)
			}
		}
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	p := Default(nil)
	for b.Loop() {
		if _, _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
