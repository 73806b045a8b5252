// Command hello is the demo's application: a web server that says who answers, from which version, with the
// greeting of its ConfigMap and proof of its Secret.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 {
		os.Exit(client(os.Args[1:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	mux := http.NewServeMux()
	mux.HandleFunc("/", hello)
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	s := &http.Server{Addr: ":8080", Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	fmt.Println("hello listens on", s.Addr)
	end := context.AfterFunc(ctx, func() {
		// The endpoint is taken out of the Service while we still answer: no request fails during an update.
		time.Sleep(2 * time.Second)
		_ = s.Shutdown(context.Background())
	})
	defer end()
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func hello(w http.ResponseWriter, r *http.Request) {
	greeting, err := os.ReadFile("/etc/hello/greeting")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	sum := sha256.Sum256([]byte(os.Getenv("TOKEN")))
	fmt.Fprintf(w, "%s from %s, version %s, secret %x\n", strings.TrimSpace(string(greeting)), os.Getenv("POD_NAME"), os.Getenv("VERSION"), sum[:4])
	fmt.Println(r.Method, r.URL, r.RemoteAddr)
}

// client fetches URLs: `hello get URL` once, `hello load URL DURATION` as fast as it can, counting failures. `hello idle` does
// nothing until it is told to end.
func client(args []string) int {
	if len(args) == 1 && args[0] == "idle" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		<-ctx.Done()
		return 0
	}
	c := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	switch {
	case len(args) == 2 && args[0] == "get":
		body, err := get(c, args[1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Print(body)
		return 0
	case len(args) == 3 && args[0] == "load":
		d, err := time.ParseDuration(args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		return load(c, args[1], d)
	}
	fmt.Fprintln(os.Stderr, "usage: hello | hello get URL | hello load URL DURATION | hello idle")
	return 2
}

func get(c *http.Client, url string) (string, error) {
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, r.Status, b)
	}
	return string(b), err
}

// load ends after d or with SIGINT.
func load(c *http.Client, url string, d time.Duration) int {
	versions, failed, longest := map[string]int{}, 0, time.Duration(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		begin := time.Now()
		body, err := get(c, url)
		longest = max(longest, time.Since(begin))
		if err != nil {
			failed++
			fmt.Println("failed:", err)
			continue
		}
		if _, v, ok := strings.Cut(body, "version "); ok {
			v, _, _ = strings.Cut(v, ",")
			versions[v]++
		}
	}
	fmt.Printf("answers by version %v, failed %d, slowest %d ms\n", versions, failed, longest.Milliseconds())
	if failed > 0 {
		return 1
	}
	return 0
}
