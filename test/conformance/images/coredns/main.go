// Command coredns is CoreDNS with the plugins that upstream's tests configure: the /coredns of the agnhost image.
package main

import (
	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/log"
)

func main() {
	dnsserver.Directives = []string{"errors", "log", "hosts", "forward"}
	// Without a file named on the command line, CoreDNS serves what it finds beside it, as upstream's build.
	caddy.SetDefaultCaddyfileLoader("default", caddy.LoaderFunc(func(string) (caddy.Input, error) {
		return caddy.CaddyfileInput{Contents: []byte(". {\n\tlog\n}\n"), ServerTypeName: "dns"}, nil
	}))
	coremain.Run()
}
