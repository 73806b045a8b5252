package builtin

import (
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/yare-dev/yare/apiserver/rest"
)

// shownEndpoints is how many addresses a column shows.
const shownEndpoints = 3

func endpoints() *rest.Resource[*corev1.Endpoints] {
	type eps = *corev1.Endpoints
	return &rest.Resource[eps]{
		CreateOnUpdate: true,
		Default: func(e eps) {
			for i := range e.Subsets {
				for j := range e.Subsets[i].Ports {
					setDefault(&e.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
				}
			}
		},
		ValidateCreate: validateEndpoints,
		ValidateUpdate: func(now, old eps) field.ErrorList {
			if equality.Semantic.DeepEqual(now.Subsets, old.Subsets) { // older rules may have accepted them
				return nil
			}
			return validateEndpoints(now)
		},
		Deprecated: "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
		Columns: []rest.Column[eps]{
			{Name: "Endpoints", Description: corev1.Endpoints{}.SwaggerDoc()["subsets"], Cell: func(e eps) any { return endpointsText(e) }},
			{Name: "Age"},
		},
	}
}

func validateEndpoints(e *corev1.Endpoints) (errs field.ErrorList) {
	for i := range e.Subsets {
		s, at := &e.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses) == 0 && len(s.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(at, "must specify `addresses` or `notReadyAddresses`"))
		}
		addresses := func(list []corev1.EndpointAddress, at *field.Path) {
			for j, a := range list {
				errs = append(errs, endpointAddress(a.IP, at.Index(j).Child("ip"))...)
				if a.Hostname != "" {
					errs = append(errs, texts(at.Index(j).Child("hostname"), a.Hostname, validation.IsDNS1123Label(a.Hostname))...)
				}
				if n := a.NodeName; n != nil {
					errs = append(errs, texts(at.Index(j).Child("nodeName"), *n, isName(*n))...)
				}
			}
		}
		addresses(s.Addresses, at.Child("addresses"))
		addresses(s.NotReadyAddresses, at.Child("notReadyAddresses"))
		for j, p := range s.Ports {
			q := at.Child("ports").Index(j)
			if p.Name == "" && len(s.Ports) > 1 {
				errs = append(errs, field.Required(q.Child("name"), ""))
			} else if p.Name != "" {
				errs = append(errs, texts(q.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))...)
			}
			errs = append(errs, texts(q.Child("port"), p.Port, validation.IsValidPortNum(int(p.Port)))...)
			errs = append(errs, oneOf(q.Child("protocol"), p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
			if p.AppProtocol != nil {
				errs = append(errs, texts(q.Child("appProtocol"), *p.AppProtocol, validation.IsQualifiedName(*p.AppProtocol))...)
			}
		}
	}
	return errs
}

// endpointAddress checks an address that traffic is sent to: one that means another thing on each host could be used to
// reach what listens there.
func endpointAddress(ip string, at *field.Path) field.ErrorList {
	errs := validation.IsValidIPForLegacyField(at, ip, true, nil)
	if netutils.ParseIPSloppy(ip) == nil {
		errs = append(errs, field.Invalid(at, ip, "must be a valid IP address"))
	}
	return append(errs, reachable(ip, at)...)
}

func endpointsText(e *corev1.Endpoints) string {
	var all []string
	for _, s := range e.Subsets {
		if len(s.Ports) == 0 {
			for _, a := range s.Addresses {
				all = append(all, a.IP)
			}
		}
		for _, p := range s.Ports {
			for _, a := range s.Addresses {
				all = append(all, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
			}
		}
	}
	return limited(all)
}

// limited shows the first of a list and how many more there are.
func limited(all []string) string {
	if n := len(all) - shownEndpoints; n > 0 {
		return strings.Join(all[:shownEndpoints], ",") + " + " + strconv.Itoa(n) + " more..."
	}
	return or(strings.Join(all, ","), none)
}
