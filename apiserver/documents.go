package apiserver

import (
	"k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/apiserver/rest"
)

type documents struct{}

func newDocuments([]rest.Any, version.Info) *documents { return &documents{} }
func (d *documents) serve(c *call, rest string) error  { return c.nothing() }
