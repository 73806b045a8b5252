package apiserver

import (
	"net/http"
	"net/http/pprof"
	"strings"
)

// debug serves the profiles of this process below /debug/pprof, where Config.Debug has it.
func (c *call) debug(rest string) error {
	which, ok := strings.CutPrefix(rest, "pprof")
	if !c.s.cfg.Debug || !ok || which != "" && which[0] != '/' {
		return c.nothing()
	}
	c.w.Header().Del("Cache-Control")
	switch strings.TrimPrefix(which, "/") {
	case "cmdline":
		pprof.Cmdline(c.w, c.r)
	case "profile":
		pprof.Profile(c.w, c.r)
	case "symbol":
		pprof.Symbol(c.w, c.r)
	case "trace":
		pprof.Trace(c.w, c.r)
	default:
		pprof.Index(c.w, c.r)
	}
	return nil
}

// logs serves the files of Config.Logs.
func (c *call) logs() error {
	if c.s.cfg.Logs == nil {
		return c.nothing()
	}
	http.StripPrefix("/logs", http.FileServerFS(c.s.cfg.Logs)).ServeHTTP(c.w, c.r)
	return nil
}
