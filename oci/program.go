package oci

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

//go:embed bin
var programs embed.FS

// ErrNoInit means that the binary was built without the embedded init program.
var ErrNoInit = errors.New("built without the container init: run make")

// Init is the container init program, ready to be executed. One per process
// is enough; it may be used from any goroutine.
type Init struct{ fd, mount int } // mount: what the program is on, or -1

// OpenInit makes the init program ready: it copies the embedded program into a
// sealed memory file. Close frees it; running containers and shims keep their
// own reference.
func OpenInit() (*Init, error) {
	program, err := programs.Open("bin/yare-init")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoInit
	}
	if err != nil {
		return nil, fmt.Errorf("read container init: %w", err)
	}
	defer program.Close()
	// In pieces that stay in the processor's cache: the runtime does this for each container.
	buffer := make([]byte, 64<<10)
	fd, err := linux.SealedCopy("yare-init", true, func(write func([]byte) error) error {
		for {
			n, err := program.Read(buffer)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = write(buffer[:n])
			}
			if err != nil {
				return err
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return &Init{fd: fd, mount: -1}, nil
}

// NewInit is [OpenInit] with a program that is not the embedded one.
func NewInit(program []byte) (*Init, error) {
	fd, err := linux.SealedFile("yare-init", program, true)
	if err != nil {
		return nil, err
	}
	return &Init{fd: fd, mount: -1}, nil
}

// FD is the program as a descriptor; it stays Init's.
func (i *Init) FD() int { return i.fd }

// Close frees the memory file.
func (i *Init) Close() error {
	if i.mount >= 0 {
		go unix.Close(i.mount) // not waited for: to forget a mount takes the kernel a grace period
	}
	return linux.Wrap("close", "container init", unix.Close(i.fd))
}
