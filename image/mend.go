package image

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"
)

// mend adds to a host's error what its reader can do.
func (s *Store) mend(err error, h host) error {
	if err == nil {
		return nil
	}
	folder := s.registries
	if folder == "" {
		folder = "the folder of registries"
	}
	if advice := advise(err, folder+"/"+h.name); advice != "" {
		return fmt.Errorf("%w (%s)", err, advice)
	}
	return err
}

func advise(err error, folder string) string {
	var certificate *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var name *net.DNSError
	switch {
	case errors.As(err, &authority):
		return "put its authority's certificate into " + folder + "/ca.crt"
	case errors.As(err, &certificate):
		return "mend its certificate, or set skipVerify in " + folder + "/host.yaml"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "set plainHTTP in " + folder + "/host.yaml if that is meant"
	case errors.As(err, &name) && name.IsNotFound, errors.Is(err, unix.ECONNREFUSED):
		return "check the registry's name and that it runs, or set mirrors in " + folder + "/host.yaml"
	case errors.Is(err, ErrUnauthorized):
		return "the image does not exist, or needs credentials: imagePullSecrets of the Pod or its ServiceAccount, --creds of 'yare image pull' or docker login before it, username and password in " + folder + "/host.yaml"
	case strings.Contains(err.Error(), "in the index, which has"):
		return "build the image for this machine"
	case errors.Is(err, ErrNotFound):
		return "check name and tag, or push the image"
	case errors.Is(err, ErrInvalid):
		return "the registry's image is damaged or not for use: push it anew, or use another"
	}
	return ""
}
