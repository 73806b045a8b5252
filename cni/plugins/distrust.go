package plugins

import (
	"errors"
	"io/fs"

	"github.com/yare-dev/yare/linux/link"
)

// distrust has the host believe nothing that comes by its end of a pod's link: no address that is not the pod's, no redirection, no router
// and no prefix (CVE-2020-10749: NET_RAW, which a pod has by default, is enough to send what becomes the host's default route by IPv6).
// Without a range for it there is no IPv6 on the link at all.
func (n *Network) distrust(h *host, name string) error {
	v4 := []string{"rp_filter", "1", "accept_redirects", "0", "send_redirects", "0"}
	v6 := []string{"disable_ipv6", "1"}
	if n.c.has6() {
		v6 = []string{"disable_ipv6", "0", "accept_ra", "0", "autoconf", "0", "accept_redirects", "0"}
	}
	return h.do(func() error {
		for i := 0; i < len(v4); i += 2 {
			if err := link.Sysctl("net/ipv4/conf/"+name+"/"+v4[i], v4[i+1]); err != nil {
				return err
			}
		}
		for i := 0; i < len(v6); i += 2 {
			// A kernel without IPv6, or a link whose MTU is too small for it, has none of these.
			if err := link.Sysctl("net/ipv6/conf/"+name+"/"+v6[i], v6[i+1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// distrustAll does that for the links that are there, which an earlier version may have made.
func (n *Network) distrustAll(h *host) error {
	names, err := link.WithPrefix(h.links, n.c.linkPrefix())
	for _, name := range names {
		if e := n.distrust(h, name); !errors.Is(e, fs.ErrNotExist) { // gone meanwhile
			err = errors.Join(err, e)
		}
	}
	return err
}
