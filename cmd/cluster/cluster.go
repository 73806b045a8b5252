// Package cluster is what a named cluster is on this host: its folders, the ports and address ranges that it
// chose, who runs it, and how to remove exactly what it made.
//
// On disk:
//
//	/var/lib/yare/clusters/<name>.json   the Record: written once at the first start, removed by the last step of Remove
//	<data>/                              etcd, pki, images, pods, logs (default /var/lib/yare/<name>)
//	<data>/settings.yaml                 the settings that it was last up with, where it was given any; the next start has the same
//	<data>/cluster.yaml                  what a server that has joined was told of the cluster's settings
//	/var/lib/kubelet                     a link to the kubelet's folder in <data> of the first cluster, where nothing else is
//	/run/yare/<name>/                    sockets, the server's lock, shims' state and network namespaces; gone after a reboot
//
// Everything that a cluster makes on the host carries its name: cgroups are below <hierarchy>/yare/<name>, the nft
// tables and links are named by Record.Table and Record.Link. Remove goes by these names and by the folders,
// never by a list of things that it remembers, so it works the same after a crash.
//
// Locks: an flock of the folder /run/yare is held while a Record is chosen or removed; <run>/server.lock is held by the
// running server for its lifetime and names its pid.
package cluster

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/yare-dev/yare/linux/durable"
)

// Host is where clusters are kept. The zero Host is the machine's usual folders; tests give their own.
type Host struct {
	VarDir string // /var/lib/yare
	RunDir string // /run/yare
	// UsualKubelet is where everybody looks for a node's kubelet, /var/lib/kubelet.
	UsualKubelet string
}

// Record is what a cluster chose when it was first started. It never changes afterwards.
type Record struct {
	Name string `json:"name"`
	// ID tells a cluster from one that was made later under the same name.
	ID      string `json:"id,omitempty"`
	DataDir string `json:"dataDir"`
	RunDir  string `json:"runDir"`
	// Index tells clusters of one host apart: ports and ranges follow from it.
	Index   int `json:"index"`
	APIPort int `json:"apiPort"`
	// PodCIDR and ServiceNet are the ranges of pods and Services, the second ones those of the other family in a cluster of two.
	PodCIDR          netip.Prefix `json:"podCIDR"`
	ServiceNet       netip.Prefix `json:"serviceCIDR"`
	SecondPodCIDR    netip.Prefix `json:"secondPodCIDR,omitzero"`
	SecondServiceNet netip.Prefix `json:"secondServiceCIDR,omitzero"`
	NodePorts        [2]int       `json:"nodePorts"` // first and last
	// PeerPort is for other servers of the cluster: its members of the database. Nobody listens there as long as there are none. Clusters of older releases
	// have none, 0.
	PeerPort int `json:"peerPort,omitempty"`
	// Joined says that this server is not the cluster's first: NodeRangesFile has its Node's ranges.
	Joined bool `json:"joined,omitempty"`
	// KubeletPort serves logs, exec and metrics to the API server.
	KubeletPort int `json:"kubeletPort"`
	// HealthzPort tells everybody on this host whether the kubelet lives. Clusters of older releases have none, 0.
	HealthzPort int `json:"healthzPort,omitempty"`
	// KubeletDir is the path that the cluster's kubelet is known by: the usual one, a link, or its own folder's. Clusters of older releases have
	// none, and mean the latter.
	KubeletDir string `json:"kubeletDir,omitempty"`
	// Ephemeral clusters do not sync to disk.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// Made is the outermost folder that had to be created for DataDir; empty if DataDir was there (then it was empty).
	Made string `json:"made,omitempty"`
	// Forwarding is the host's net.ipv4.ip_forward before the first cluster of the host switched it on; the last one to go restores it.
	Forwarding string `json:"forwarding"`
	// Forwarding6 is likewise net.ipv6.conf.all.forwarding, and AdvertisedLinks those that had a default route by a router's word then; of clusters
	// with IPv6 alone.
	Forwarding6     string   `json:"forwarding6,omitempty"`
	AdvertisedLinks []string `json:"advertisedLinks,omitempty"`
	// Kubeconfig is the file that a context was merged into; KubeconfigMade the outermost folder, or the file itself, that had
	// to be created for it.
	Kubeconfig     string `json:"kubeconfig"`
	KubeconfigMade string `json:"kubeconfigMade,omitempty"`
	// ContextsBefore are the context that was current in it, which Remove makes so again, and in case that it was a cluster's of this
	// host and is gone by then, those before that, the latest first, and at last any earlier cluster's.
	ContextsBefore []string `json:"contextsBefore,omitempty"`
}

// Table is the prefix of the names of the cluster's nft tables.
func (r *Record) Table() string { return "yare-" + r.Name }

// AppArmorProfile is the name of the cluster's default AppArmor profile.
func (r *Record) AppArmorProfile() string { return "yare-" + r.Name }

// Cgroup is the cluster's subtree in every hierarchy, from the hierarchy's root.
func (r *Record) Cgroup() string { return "/yare/" + r.Name }

// SettingsFile is where the settings of the cluster's last start are kept for the next one; it need not be there.
func (r *Record) SettingsFile() string { return filepath.Join(r.DataDir, "settings.yaml") }

// KeepSettings makes the text that of the SettingsFile, durably: who starts the cluster next has the same settings.
func (r *Record) KeepSettings(text []byte) error {
	if err := os.MkdirAll(r.DataDir, 0o711); err != nil {
		return err
	}
	return durable.Write(r.SettingsFile(), text, 0o600)
}

// HasSettings says whether the text is what the cluster keeps; keeping nothing is the same as an empty text.
func (r *Record) HasSettings(text []byte) bool {
	kept, err := os.ReadFile(r.SettingsFile())
	return (err == nil || errors.Is(err, fs.ErrNotExist)) && bytes.Equal(kept, text)
}

// Context is the name of the cluster's kubeconfig context.
func (r *Record) Context() string {
	if r.Name == DefaultName {
		return "yare"
	}
	return "yare-" + r.Name
}

// DefaultName is the cluster that commands mean when they are given no name.
const DefaultName = "default"

// maxClusters bounds Index: the ranges 10.42.0.0/16, 10.44.0.0/16 ... stay within 10.0.0.0/8.
const maxClusters = 100

// ErrUnknown says that there is no cluster of a name; the error is an [UnknownError].
var ErrUnknown = errors.New("no such cluster")

// UnknownError is ErrUnknown with the name.
type UnknownError struct{ Name string }

func (e *UnknownError) Error() string { return fmt.Sprintf("cluster %q: %v", e.Name, ErrUnknown) }
func (e *UnknownError) Unwrap() error { return ErrUnknown }

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)

// CheckName tells what is wrong with a cluster's name.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("cluster name %q: use 1 to 20 lower-case letters, digits and '-', not '-' at either end", name)
	}
	return nil
}

func (h Host) varDir() string {
	if h.VarDir == "" {
		return "/var/lib/yare"
	}
	return h.VarDir
}

func (h Host) runDir() string {
	if h.RunDir == "" {
		return "/run/yare"
	}
	return h.RunDir
}

func (h Host) recordsDir() string            { return filepath.Join(h.varDir(), "clusters") }
func (h Host) recordFile(name string) string { return filepath.Join(h.recordsDir(), name+".json") }

// lock holds the host's lock: an flock of the folder RunDir, so that nothing is left once the last cluster is removed.
func (h Host) lock() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(h.runDir(), 0o755); err != nil {
			return nil, err
		}
		f, err := os.Open(h.runDir())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", h.runDir(), err)
		}
		// Whoever held it may have removed the folder: then this lock is of a folder that nobody else finds.
		held, err1 := f.Stat()
		named, err2 := os.Stat(h.runDir())
		if err1 == nil && err2 == nil && os.SameFile(held, named) {
			return func() {
				os.Remove(h.runDir()) // fails while there is a cluster in it
				f.Close()
			}, nil
		}
		f.Close()
	}
}

// List returns the records of all clusters of the host, by name.
func (h Host) List() ([]*Record, error) {
	files, err := os.ReadDir(h.recordsDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rs []*Record
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok {
			continue
		}
		r, err := h.Find(name)
		if err != nil {
			return nil, err
		}
		rs = append(rs, r)
	}
	return rs, nil
}

// Find returns the record of a cluster, or ErrUnknown.
func (h Host) Find(name string) (*Record, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(h.recordFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &UnknownError{name}
	}
	if err != nil {
		return nil, err
	}
	r := new(Record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", h.recordFile(name), err)
	}
	return r, nil
}

// Wish is what a user asks of a new cluster; zero fields are chosen.
type Wish struct {
	Name       string
	DataDir    string
	Kubeconfig string
	// UsualKubeconfig is what a new cluster has where no Kubeconfig is asked for.
	UsualKubeconfig string
	Ephemeral       *bool // nil: a new cluster is durable
	APIPort         int
	// PodCIDRs and ServiceCIDRs, of which CheckRanges had nothing to say.
	PodCIDRs, ServiceCIDRs []netip.Prefix
	// NodePorts are given, and Joined is said, for a further server of a cluster elsewhere.
	NodePorts [2]int
	Joined    bool
	// IPv6 says that pods have it although no range of PodCIDRs is of it: those are for the node of a cluster elsewhere.
	IPv6 bool
}

// Claim returns the record of the named cluster, choosing and writing one if it is new. Ports and ranges are free
// of every other cluster's and of what the host uses now. A second cluster on the same data is refused, as is
// a wish that contradicts the record of a cluster that exists.
func (h Host) Claim(w Wish) (r *Record, created bool, err error) {
	if err := CheckName(w.Name); err != nil {
		return nil, false, err
	}
	unlock, err := h.lock()
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	if r, err := h.Find(w.Name); err == nil {
		return r, false, r.agrees(w)
	} else if !errors.Is(err, ErrUnknown) {
		return nil, false, err
	}
	others, err := h.List()
	if err != nil {
		return nil, false, err
	}
	r, err = h.choose(w, others)
	if err != nil {
		return nil, false, err
	}
	if err := h.write(r); err != nil {
		return nil, false, err
	}
	return r, true, nil
}

func (r *Record) agrees(w Wish) error {
	if w.DataDir != "" && filepath.Clean(w.DataDir) != r.DataDir {
		return fmt.Errorf("cluster %q has its data in %s, not %s: leave out --data-dir (dataDir), or use another --name", r.Name, r.DataDir, w.DataDir)
	}
	if w.Kubeconfig != "" && filepath.Clean(w.Kubeconfig) != filepath.Clean(r.Kubeconfig) {
		return fmt.Errorf("cluster %q has its context in %s, not %s: leave out --kubeconfig (kubeconfig)", r.Name, r.Kubeconfig, w.Kubeconfig)
	}
	if w.Ephemeral != nil && *w.Ephemeral != r.Ephemeral {
		is := map[bool]string{false: "durable", true: "ephemeral"}[r.Ephemeral]
		return fmt.Errorf("cluster %q is %s: --ephemeral (ephemeral) is chosen when a cluster is made; 'yare down --name %s' first", r.Name, is, r.Name)
	}
	for _, l := range []struct {
		field     string
		wish, has []netip.Prefix
	}{{"podCIDRs", w.PodCIDRs, r.PodCIDRs()}, {"serviceCIDRs", w.ServiceCIDRs, r.ServiceCIDRs()}} {
		if len(l.wish) > 0 && !slices.Equal(l.wish, l.has) {
			return fmt.Errorf("cluster %q has %s %v, not %v: they are chosen when a cluster is made; 'yare down --name %s' first", r.Name, l.field, l.has, l.wish, r.Name)
		}
	}
	if w.APIPort != 0 && w.APIPort != r.APIPort {
		return fmt.Errorf("cluster %q serves its API on port %d, not %d: leave out --api-port (apiPort)", r.Name, r.APIPort, w.APIPort)
	}
	return nil
}

func (h Host) choose(w Wish, others []*Record) (*Record, error) {
	r := &Record{
		Name: w.Name, ID: rand.Text(), DataDir: w.DataDir, Kubeconfig: cmp.Or(w.Kubeconfig, w.UsualKubeconfig),
		Ephemeral: w.Ephemeral != nil && *w.Ephemeral, RunDir: filepath.Join(h.runDir(), w.Name), Joined: w.Joined,
	}
	if r.DataDir == "" {
		r.DataDir = filepath.Join(h.varDir(), w.Name)
	}
	var err error
	if r.DataDir, err = filepath.Abs(r.DataDir); err != nil {
		return nil, err
	}
	for _, o := range others {
		if within(r.DataDir, o.DataDir) || within(o.DataDir, r.DataDir) {
			return nil, fmt.Errorf("data folder %s is used by cluster %q (%s): choose another --data-dir", r.DataDir, o.Name, o.DataDir)
		}
	}
	r.KubeletDir = h.chooseKubeletDir(r, others)
	if err := checkEmpty(r.DataDir); err != nil {
		return nil, err
	}
	if r.Made, err = outermostMissing(r.DataDir); err != nil {
		return nil, err
	}
	if r.KubeconfigMade, err = outermostMissing(r.Kubeconfig); err != nil {
		return nil, err
	}
	current, err := currentContext(r.Kubeconfig)
	if err != nil {
		return nil, err
	}
	r.ContextsBefore = []string{current}
	var beside []string
	for _, o := range others {
		if o.Kubeconfig != r.Kubeconfig {
			continue
		}
		r.KubeconfigMade = o.KubeconfigMade // the last one to go removes what the first one made
		if o.Context() == current {
			r.ContextsBefore = append(r.ContextsBefore, o.ContextsBefore...)
		} else {
			beside = append(beside, o.Context())
		}
	}
	r.ContextsBefore = append(r.ContextsBefore, beside...)
	if len(others) > 0 {
		r.Forwarding = others[0].Forwarding
	} else if r.Forwarding, err = forwarding(); err != nil {
		return nil, err
	}
	if err := r.chooseRanges(w, others); err != nil {
		return nil, err
	}
	if w.IPv6 || HasIPv6(r.PodCIDRs()) {
		if err := r.noteForwarding6(others); err != nil {
			return nil, err
		}
	}
	return r, r.choosePorts(w, others)
}

// currentContext is that of a kubeconfig, which need not exist.
func currentContext(file string) (string, error) {
	c, err := clientcmd.LoadFromFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read kubeconfig %s: %w", file, err)
	}
	return c.CurrentContext, nil
}

// checkEmpty says why a folder that exists cannot become a cluster's data folder.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		return fmt.Errorf("data folder %s is not empty and belongs to no cluster of this host: choose another --data-dir or empty it", dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data folder: %w", err)
	}
	return nil
}

// outermostMissing returns what has to be created first on the way to path, "" when path exists.
func outermostMissing(path string) (string, error) {
	if _, err := os.Stat(path); err == nil {
		return "", nil
	}
	for {
		parent := filepath.Dir(path)
		if st, err := os.Stat(parent); err == nil {
			if !st.IsDir() {
				return "", fmt.Errorf("%s: %s is not a folder", path, parent)
			}
			return path, nil
		}
		path = parent
	}
}

func within(a, b string) bool {
	rel, err := filepath.Rel(b, a)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func (h Host) write(r *Record) error {
	if err := os.MkdirAll(h.recordsDir(), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return durable.Write(h.recordFile(r.Name), append(b, '\n'), 0o600)
}
