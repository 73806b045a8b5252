// Command yare-oci is the OCI runtime alone, for those who start it once per verb: containerd, Podman, CRI-O, Docker. It is
// `yare oci` to the letter (package oci/cli) without the rest of Yare, whose size every start would pay for.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/cli"
)

var version = "0.1.0+unknown" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	code := cli.Main(ctx, version, os.Args[1:])
	stop()
	os.Exit(code)
}
