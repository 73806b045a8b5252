package netpol

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSCTP sends packets that open SCTP associations, also on kernels that have no sockets for these.
func TestSCTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(t, namespaces+`---
kind: NetworkPolicy
metadata: {namespace: b, name: p}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{ports: [{port: 8080, protocol: SCTP}, {port: 9000, endPort: 9009, protocol: SCTP}, {port: 9100, protocol: TCP}]}]`)
	w.start(t)
	w.pod(t, "a", "client", nil)
	w.pod(t, "b", "server", nil)
	in, from := w.raw(t, "server", unix.IPPROTO_SCTP), w.raw(t, "client", unix.IPPROTO_SCTP)
	for _, port := range []uint16{8081, 9010, 9100, 8080, 9009} { // what arrives in the end shows that what was before has not
		if err := unix.Sendto(from, initSCTP(port), 0, &unix.SockaddrInet4{Addr: w.addrs["server"].As4()}); err != nil {
			t.Fatal(err)
		}
	}
	patience := unix.NsecToTimeval(plenty.Nanoseconds())
	if err := unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint16{8080, 9009} {
		b := make([]byte, 100)
		if _, _, err := unix.Recvfrom(in, b, 0); err != nil {
			t.Fatalf("port %d: %v", want, err)
		}
		if got := binary.BigEndian.Uint16(b[20+2:]); got != want {
			t.Errorf("port %d arrives, want %d", got, want)
		}
	}
}

// initSCTP is an INIT chunk to a port.
func initSCTP(port uint16) []byte {
	p := make([]byte, 12+20)
	binary.BigEndian.PutUint16(p, 12345)
	binary.BigEndian.PutUint16(p[2:], port)
	chunk := p[12:]
	chunk[0], chunk[3] = 1, 20
	binary.BigEndian.PutUint32(chunk[4:], 1)     // tag
	binary.BigEndian.PutUint32(chunk[8:], 65536) // window
	binary.BigEndian.PutUint16(chunk[12:], 1)    // streams out
	binary.BigEndian.PutUint16(chunk[14:], 1)    // and in
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}
