// Command box is what the pods of the tests run: without words it waits; with words it looks at a volume.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) < 2 {
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
		<-end
		return
	}
	if err := do(os.Args[1], os.Args[2], strings.Join(os.Args[3:], " ")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// do reads or writes what is at path: a file, or a device from its beginning. The verb register offers a driver to the kubelet.
func do(verb, path, text string) error {
	switch verb {
	case "register":
		return register(path, text)
	case "read":
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		b := make([]byte, 64)
		n, err := f.Read(b)
		fmt.Print(strings.TrimRight(string(b[:n]), "\x00"))
		return err
	case "write":
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if _, err := f.WriteString(text); err != nil {
			return err
		}
		return f.Close()
	case "stat":
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		fmt.Print(info.Mode(), " ", info.Sys().(*syscall.Stat_t).Gid)
		return nil
	}
	return fmt.Errorf("no such verb: %s", verb)
}
