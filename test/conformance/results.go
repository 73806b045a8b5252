package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/yare-dev/yare/test/conformance/images"
	"github.com/yare-dev/yare/test/conformance/report"
	"github.com/yare-dev/yare/test/conformance/suite"
)

// serveImages says in o where the tests' images come from, and serves them if they are ours, until done is called.
func serveImages(ctx context.Context, w wish, cache string, o *suite.Options, second *node, out io.Writer) (done func(), err error) {
	from := w.images
	if from == "" {
		from = "local"
		if w.kubeconfig != "" {
			from = "upstream"
		}
	}
	switch from {
	case "upstream":
		return func() {}, nil
	case "local":
	default:
		o.Images, err = filepath.Abs(from)
		return func() {}, err
	}
	dir, err := localImages(ctx, w.module, cache, false, out)
	if err != nil {
		return nil, err
	}
	registry, err := images.Open(dir)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", w.registry)
	if err != nil {
		return nil, fmt.Errorf("serve images: %w", err)
	}
	o.Images = filepath.Join(o.Dir, "registries.yaml")
	// An image that does not exist must not cost the time of a name that no server answers for.
	text := fmt.Sprintf("promoterE2eRegistry: %[1]s/e2e-test-images\nbuildImageRegistry: %[1]s/build-image\n"+
		"gcEtcdRegistry: %[1]s\ngcRegistry: %[1]s\ninvalidRegistry: %[1]s/invalid\n", l.Addr())
	if err := os.WriteFile(o.Images, []byte(text), 0o644); err != nil {
		return nil, err
	}
	all := []net.Listener{l}
	if second != nil { // its loopback addresses are its own
		there, err := second.listen(l.Addr().String())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve images to the second node: %w", err), l.Close())
		}
		all = append(all, there)
	}
	server := &http.Server{Handler: registry, ReadHeaderTimeout: 10 * time.Second}
	var serving sync.WaitGroup
	for _, l := range all {
		// It ends by Close; if it ended earlier, the tests say so by images that they do not get.
		serving.Go(func() { _ = server.Serve(l) })
	}
	return func() {
		_ = server.Close()
		serving.Wait()
	}, nil
}

// judge writes down and says what the run was. It is an error to have lost what had passed.
func judge(r *report.Run, ratchet *report.Ratchet, cache, dir string, out io.Writer) error {
	raw, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	paths := []string{filepath.Join(dir, "results.json")}
	if !r.Beside {
		paths = append(paths, lastRun(cache)) // for accept
	}
	for _, path := range paths {
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			return err
		}
	}
	summary, err := os.Create(filepath.Join(dir, "summary.txt"))
	if err != nil {
		return err
	}
	defer summary.Close()
	both := io.MultiWriter(out, summary)
	fmt.Fprintln(both)
	if err := report.Summary(both, r); err != nil {
		return err
	}
	if r.Foreign || r.Beside { // the ratchet is of what Yare passes of the suite
		return nil
	}
	if fresh := ratchet.New(r.Results); len(fresh) > 0 {
		fmt.Fprintf(both, "\n%d tests passed for the first time: make conformance-accept keeps them\n", len(fresh))
	}
	lost := ratchet.Lost(r.Results)
	if len(lost) == 0 {
		return nil
	}
	fmt.Fprintf(both, "\nRED: these have passed before\n")
	for _, x := range lost {
		fmt.Fprintf(both, "    %s: %s\n        %s\n", x.Outcome, x.Name, report.Brief(x.Message))
	}
	return fmt.Errorf("%d tests that have passed before did not pass", len(lost))
}

func lastRun(cache string) string { return filepath.Join(cache, "last.json") }

// accept takes the last run up into the ratchet and the document.
func accept(ctx context.Context, w wish, cache string, out io.Writer) error {
	raw, err := os.ReadFile(lastRun(cache))
	if err != nil {
		return fmt.Errorf("no run to accept: %w", err)
	}
	var r report.Run
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("read last run: %w", err)
	}
	if r.Foreign {
		return fmt.Errorf("the last run was of another cluster: nothing of it is kept")
	}
	ratchet, err := report.ReadRatchet(filepath.Join(w.module, "passing.txt"))
	if err != nil {
		return err
	}
	reasons, err := report.ReadReasons(filepath.Join(w.module, "reasons.txt"))
	if err != nil {
		return err
	}
	program, err := suite.Build(ctx, w.module, cache, out)
	if err != nil {
		return err
	}
	report.Discount(r.Results, reasons)
	fresh := ratchet.New(r.Results)
	if err := ratchet.Add(fresh); err != nil {
		return err
	}
	if err := report.UpdateDocument(filepath.Join(w.module, w.document), program.Names, &r, reasons); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d tests added to passing.txt; the document tells of the run of %s\n", len(fresh), r.Began.Format(time.DateTime))
	return nil
}
