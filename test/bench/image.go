package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
)

const (
	imageBytes  = 1 << 30
	imageLayers = 20
)

// bigImage is an image of 1 GB in 20 gzip layers in a folder, as a registry serves it.
type bigImage struct {
	dir      string
	manifest []byte
	blobs    map[string]string // files by digest
	layers   []string          // files
}

// pulls are what a run measures.
type pulls struct{ gunzip, cri, command time.Duration }

// imagePull measures the pull of 1 GB in 20 gzip layers from a registry on this machine, by CRI as for a pod and by `yare image pull`, beside
// what gunzip takes for the same layers, as many at once as there are cores. Each run does all, so that all see the same machine.
func imagePull(value func(pulls) float64) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		if b.pulls == nil {
			if err := b.imagePulls(ctx); err != nil {
				return nil, err
			}
		}
		var out []float64
		for _, p := range b.pulls {
			out = append(out, value(p))
		}
		return out, nil
	}
}

// imagePulls fills b.pulls.
func (b *bench) imagePulls(ctx context.Context) error {
	if _, err := exec.LookPath("gunzip"); err != nil {
		return errors.New("gunzip is not installed")
	}
	dir := filepath.Join(b.dir, "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	im, err := makeImage(ctx, dir)
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: im, ReadHeaderTimeout: time.Minute}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	defer wg.Wait()
	defer server.Close()
	ref := listener.Addr().String() + "/big:1"
	for i := range min(b.runs, 5) {
		// Data is removed last: ext4 is slow to take inodes that have just become free.
		data := func(by string) string { return filepath.Join(dir, fmt.Sprint(by, i)) }
		var p pulls
		if p.gunzip, err = timed(func() error { return im.gunzip(ctx) }); err != nil {
			return err
		}
		if p.cri, err = b.criPull(ctx, data("cri"), ref); err != nil {
			return err
		}
		if p.command, err = timed(func() error { return b.command("image", "pull", "--data-dir", data("command"), ref) }); err != nil {
			return err
		}
		b.pulls = append(b.pulls, p)
	}
	return nil
}

// timed measures do on a machine whose disk has nothing to do, and which has the memory that it says it has: the host of a virtual
// machine takes memory back that was not used for some seconds, and gives it again at some 10 µs a page, to whoever asks first.
func timed(do func() error) (time.Duration, error) {
	syscall.Sync()
	const most = 2*imageBytes + imageBytes/2
	memory, err := syscall.Mmap(-1, 0, most, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return 0, fmt.Errorf("%d bytes of memory: %w", most, err)
	}
	for i := 0; i < most; i += os.Getpagesize() {
		memory[i] = 1
	}
	if err := syscall.Munmap(memory); err != nil {
		return 0, err
	}
	began := time.Now()
	err = do()
	return time.Since(began), err
}

// criPull measures CRI's PullImage, served by a runtime of its own.
func (b *bench) criPull(ctx context.Context, data, ref string) (took time.Duration, err error) {
	run := filepath.Join(b.dir, "run")
	c := exec.CommandContext(ctx, b.yare, "runtime", "--data-dir", data, "--run-dir", run, "--socket", filepath.Join(run, "cri.sock"))
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Process.Signal(syscall.SIGTERM), c.Wait()) }()
	client, err := cri.Dial(ctx, filepath.Join(run, "cri.sock"))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	return timed(func() error {
		_, err := client.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		return err
	})
}

// gunzip decompresses all layers.
func (im *bigImage) gunzip(ctx context.Context) error {
	return inParallel(im.layers, func(_ int, file string) error { return exec.CommandContext(ctx, "gunzip", "-c", file).Run() })
}

func inParallel(files []string, do func(int, string) error) error {
	errs := make([]error, len(files))
	next := make(chan int)
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() {
			for i := range next {
				errs[i] = do(i, files[i])
			}
		})
	}
	for i := range files {
		next <- i
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// makeImage takes this machine's programs, libraries and documents, over and over where they are not enough.
func makeImage(ctx context.Context, dir string) (*bigImage, error) {
	files, err := someFiles(ctx)
	if err != nil {
		return nil, err
	}
	im := &bigImage{dir: dir, blobs: map[string]string{}, layers: make([]string, imageLayers)}
	for i := range im.layers {
		im.layers[i] = filepath.Join(dir, fmt.Sprint("layer", i))
	}
	digests, diffs := make([]string, imageLayers), make([]string, imageLayers)
	err = inParallel(im.layers, func(i int, file string) (err error) {
		digests[i], diffs[i], err = makeLayer(file, fmt.Sprint("part", i), files[i])
		return err
	})
	if err != nil {
		return nil, err
	}
	type m = map[string]any
	config, err := json.Marshal(m{"os": "linux", "architecture": runtime.GOARCH, "rootfs": m{"type": "layers", "diff_ids": diffs}})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return nil, err
	}
	im.blobs[digestOf(config)] = file
	var layers []m
	for i, file := range im.layers {
		st, err := os.Stat(file)
		if err != nil {
			return nil, err
		}
		im.blobs[digests[i]] = file
		layers = append(layers, m{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digests[i], "size": st.Size()})
	}
	im.manifest, err = json.Marshal(m{"schemaVersion": 2, "mediaType": manifestType, "layers": layers, "config": m{
		"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digestOf(config), "size": len(config)}})
	return im, err
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// someFiles deals files out to the layers, until each has its share of bytes.
func someFiles(ctx context.Context) (dealt [][]string, err error) {
	var all []string
	var total int64
	for _, root := range []string{"/usr", "/opt", "/lib", "/bin", "/usr/local"} {
		err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil || total >= imageBytes || !e.Type().IsRegular() {
				return nil
			}
			if i, err := e.Info(); err == nil && i.Size() < imageBytes/imageLayers/2 {
				all, total = append(all, p), total+i.Size()
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if total < 1<<20 {
		return nil, errors.New("too few files on this machine")
	}
	dealt = make([][]string, imageLayers)
	next := 0
	for i := range dealt {
		for size := int64(0); size < imageBytes/imageLayers; next++ {
			file := all[next%len(all)]
			if st, err := os.Stat(file); err == nil {
				dealt[i], size = append(dealt[i], file), size+st.Size()+512
			}
		}
	}
	return dealt, nil
}

// makeLayer writes a layer of files, with the directories above them.
func makeLayer(to, below string, files []string) (digest, diffID string, err error) {
	f, err := os.Create(to)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	packed, plain := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(f, packed))
	w := tar.NewWriter(io.MultiWriter(z, plain))
	made := map[string]bool{}
	for n, file := range files {
		if err := addFile(w, made, path.Join(below, fmt.Sprint(n/500), file), file); err != nil {
			return "", "", err
		}
	}
	sum := func(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }
	err = errors.Join(w.Close(), z.Close(), f.Close())
	return sum(packed), sum(plain), err
}

func addFile(w *tar.Writer, made map[string]bool, name, file string) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || made[name] {
		return nil
	}
	if err != nil {
		return err
	}
	made[name] = true
	var above []string
	for dir := path.Dir(name); dir != "." && !made[dir]; dir = path.Dir(dir) {
		made[dir] = true
		above = append(above, dir)
	}
	for i := len(above) - 1; i >= 0; i-- {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: above[i] + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(b))}); err != nil {
		return err
	}
	_, err = io.Copy(w, bytes.NewReader(b))
	return err
}

// ServeHTTP is the registry.
func (im *bigImage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/v2/":
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", manifestType)
		_, _ = w.Write(im.manifest)
	case im.blobs[path.Base(r.URL.Path)] != "":
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeFile(w, r, im.blobs[path.Base(r.URL.Path)])
	default:
		http.NotFound(w, r)
	}
}
