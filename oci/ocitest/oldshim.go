package ocitest

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/yare-dev/yare/oci/shim/protocol"
	"github.com/yare-dev/yare/oci/wire"
)

// OldShim makes the shim with the state directory dir one of another release, to whoever connects from now on until the test ends: it says
// that it speaks another version of the protocol, or hangs up on whatever it is told.
func OldShim(t testing.TB, dir string, hangsUp bool) {
	t.Helper()
	front, back := filepath.Join(dir, "shim.sock"), filepath.Join(dir, "own.sock")
	if err := os.Rename(front, back); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unixpacket", front)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // connections end with their clients and the shim, which other clean-ups see to
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			shim, err := net.Dial("unixpacket", back)
			if err != nil { // it is dead
				client.Close()
				continue
			}
			go pass(shim, client, func([]byte) []byte {
				if hangsUp {
					client.Close()
				}
				return nil
			})
			go pass(client, shim, older)
		}
	}()
}

// pass hands messages on, or what instead makes of them, until one side ends.
func pass(to, from net.Conn, instead func([]byte) []byte) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, protocol.MaxMessage)
	for {
		n, err := from.Read(buf)
		if err != nil || n == 0 {
			return
		}
		message := buf[:n]
		if other := instead(message); other != nil {
			message = other
		}
		if _, err := to.Write(message); err != nil {
			return
		}
	}
}

// older is the reply of a shim that speaks an older version; nil where it says nothing of versions.
func older(b []byte) []byte {
	var r protocol.Reply
	if err := wire.Unmarshal(b, &r); err != nil || r.Version == 0 {
		return nil
	}
	r.Version--
	return wire.Marshal(&r)
}
