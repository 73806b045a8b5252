package apparmor

import "testing"

func TestListed(t *testing.T) {
	t.Parallel()
	const list = "yare-default (enforce)\n/usr/sbin/ntpd (complain)\na profile (of mine) (enforce)\nnvidia_modprobe//kmod (unconfined)\n"
	for name, want := range map[string]bool{
		"yare-default": true, "/usr/sbin/ntpd": true, "a profile (of mine)": true, "nvidia_modprobe//kmod": true,
		"yare": false, "yare-default (enforce)": false, "a profile": false, "": false, "enforce": false,
	} {
		if got := listed(list, name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// On any host, and twice.
func TestRemoveWhatIsNotThere(t *testing.T) {
	t.Parallel()
	for range 2 {
		if err := Remove("yare-test-that-is-not-there"); err != nil {
			t.Error(err)
		}
	}
}
