package image

import (
	"io"
	"sync"
)

const (
	// aheadSize is how much is handed from one stage of a pull to the next at
	// once, in bytes, aheadBlocks how many such blocks there are between two.
	aheadSize   = 256 << 10
	aheadBlocks = 4
)

// ahead reads in a goroutine of its own, a few blocks before they are asked
// for, so that fetching, decompressing and unpacking one layer run side by side.
type ahead struct {
	full chan block
	free chan []byte
	stop chan struct{}
	wg   sync.WaitGroup

	now  block
	left []byte // of now.data
}

type block struct {
	data []byte
	err  error // after data
}

// readAhead begins to read r, which nobody else may use until close.
func readAhead(r io.Reader) *ahead {
	a := &ahead{full: make(chan block, aheadBlocks), free: make(chan []byte, aheadBlocks), stop: make(chan struct{})}
	for range aheadBlocks {
		a.free <- make([]byte, aheadSize)
	}
	a.wg.Go(func() { a.fill(r) })
	return a
}

func (a *ahead) fill(r io.Reader) {
	for {
		var b block
		select {
		case b.data = <-a.free:
		case <-a.stop:
			return
		}
		n := 0
		for n < len(b.data) && b.err == nil {
			var m int
			m, b.err = r.Read(b.data[n:])
			n += m
		}
		b.data = b.data[:n]
		a.full <- b // there is room for all blocks
		if b.err != nil {
			return
		}
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.data != nil {
			a.free <- a.now.data[:cap(a.now.data)]
		}
		a.now = <-a.full
		a.left = a.now.data
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// close ends the goroutine, after the Read of r that it is in.
func (a *ahead) close() {
	close(a.stop)
	a.wg.Wait()
}
