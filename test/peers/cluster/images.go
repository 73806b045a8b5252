package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
)

// The images of the scenario, made of the host's busybox and the program web. They come from nowhere else: pods must have pull policy Never.
const (
	WebImage   = "peers.local/web:1"
	PauseImage = "peers.local/pause:1" // for containerd, whose sandboxes are containers
)

// applets are the names that busybox has in the images.
var applets = []string{"sh", "cat", "sleep", "echo", "ls", "env"}

type imageConfig struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       struct {
		Cmd []string
		Env []string
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

type archiveEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// writeImages writes both images as one docker archive into dir.
func writeImages(dir, web string) (path string, err error) {
	found, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("the images are made of the host's static busybox: %w", err)
	}
	busybox, err := os.ReadFile(found)
	if err != nil {
		return "", err
	}
	server, err := os.ReadFile(web)
	if err != nil {
		return "", err
	}
	layer, err := tarball(func(add func(tar.Header, []byte) error) error {
		for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "data"} {
			if err := add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil); err != nil {
				return err
			}
		}
		for _, a := range applets {
			if err := add(tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil); err != nil {
				return err
			}
		}
		if err := add(tar.Header{Name: "bin/web", Typeflag: tar.TypeReg, Mode: 0o755}, server); err != nil {
			return err
		}
		return add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, busybox)
	})
	if err != nil {
		return "", err
	}
	files := map[string][]byte{"layer.tar": layer}
	var entries []archiveEntry
	for _, i := range []struct {
		name string
		cmd  []string
	}{{WebImage, []string{"web"}}, {PauseImage, []string{"sleep", "2147483647"}}} {
		config := imageConfig{Architecture: "amd64", OS: "linux"}
		config.Config.Cmd, config.Config.Env = i.cmd, []string{"PATH=/bin"}
		config.RootFS.Type, config.RootFS.DiffIDs = "layers", []string{"sha256:" + digest(layer)}
		text, err := json.Marshal(config)
		if err != nil {
			return "", err
		}
		name := digest(text) + ".json"
		files[name] = text
		entries = append(entries, archiveEntry{Config: name, RepoTags: []string{i.name}, Layers: []string{"layer.tar"}})
	}
	if files["manifest.json"], err = json.Marshal(entries); err != nil {
		return "", err
	}
	archive, err := tarball(func(add func(tar.Header, []byte) error) error {
		for name, content := range files {
			if err := add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "images.tar")
	return path, os.WriteFile(path, archive, 0o644)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func tarball(fill func(add func(tar.Header, []byte) error) error) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := fill(func(h tar.Header, content []byte) error {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}

// atLink copies a kubeconfig and names the server by its address on the link.
func (c *Cluster) atLink(from, name string) (string, error) {
	config, err := clientcmd.LoadFromFile(from)
	if err != nil {
		return "", err
	}
	for _, cluster := range config.Clusters {
		cluster.Server = c.url
	}
	path := c.path(name + ".kubeconfig")
	return path, clientcmd.WriteToFile(*config, path)
}
