// Command web is the program of the scenario's image: it serves a folder, or asks for pages. busybox could do both, were it
// not that asking for a page crashes Debian's static one in an image without the C library.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	get := flag.String("get", "", "URL of a page to print instead")
	times := flag.Int("times", 1, "how many times, each over a connection of its own")
	flag.Parse()
	var err error
	if *get == "" {
		server := &http.Server{Addr: ":8080", Handler: http.FileServer(http.Dir("/data")), ReadHeaderTimeout: 5 * time.Second}
		err = server.ListenAndServe()
	} else {
		err = ask(*get, *times)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func ask(url string, times int) error {
	web := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range times {
		r, err := web.Get(url)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, r.Body)
		if err := errors.Join(err, r.Body.Close()); err != nil {
			return err
		}
		if r.StatusCode != http.StatusOK {
			return errors.New(r.Status)
		}
	}
	return nil
}
