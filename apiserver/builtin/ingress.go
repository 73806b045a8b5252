package builtin

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/yare-dev/yare/apiserver/rest"
)

const (
	ingressClassAnnotation = "kubernetes.io/ingress.class"
	// shownHosts is how many hosts have room in a column.
	shownHosts = 3
)

func ingresses() *rest.Resource[*networkingv1.Ingress] {
	type ingress = *networkingv1.Ingress
	return &rest.Resource[ingress]{
		Validate: validateIngress,
		ValidateCreate: func(i ingress) field.ErrorList {
			class, ok := i.Annotations[ingressClassAnnotation]
			if !ok || i.Spec.IngressClassName == nil || class == *i.Spec.IngressClassName {
				return nil
			}
			return field.ErrorList{field.Invalid(field.NewPath("annotations", ingressClassAnnotation), class, "must match `ingressClassName` when both are specified")}
		},
		ValidateStatus: func(now, old ingress) (errs field.ErrorList) {
			var had []string
			for _, in := range old.Status.LoadBalancer.Ingress {
				had = append(had, in.IP)
			}
			for i, in := range now.Status.LoadBalancer.Ingress {
				errs = append(errs, balancerPoint(field.NewPath("status", "loadBalancer", "ingress").Index(i), in.IP, in.Hostname, had)...)
			}
			return errs
		},
		Warn: func(now, old ingress) []string {
			if _, ok := now.Annotations[ingressClassAnnotation]; !ok || old != nil || now.Spec.IngressClassName != nil {
				return nil
			}
			return []string{fmt.Sprintf("annotation %q is deprecated, please use 'spec.ingressClassName' instead", ingressClassAnnotation)}
		},
		Columns: []rest.Column[ingress]{
			{Name: "Class", Description: "The name of the IngressClass resource that should be used for additional configuration", Cell: func(i ingress) any {
				if i.Spec.IngressClassName == nil {
					return none
				}
				return *i.Spec.IngressClassName
			}},
			{Name: "Hosts", Description: "Hosts that incoming requests are matched against before the ingress rule", Cell: func(i ingress) any { return hostsText(i.Spec.Rules) }},
			{Name: "Address", Description: "Address is a list containing ingress points for the load-balancer", Cell: func(i ingress) any { return ingressAddress(i) }},
			{Name: "Ports", Description: "Ports of TLS configurations that open", Cell: func(i ingress) any {
				if len(i.Spec.TLS) > 0 {
					return "80, 443"
				}
				return "80"
			}},
			{Name: "Age"},
		},
	}
}

func hostsText(rules []networkingv1.IngressRule) string {
	var hosts []string
	more := false
	for _, r := range rules {
		if len(hosts) == shownHosts {
			more = true
		} else if r.Host != "" {
			hosts = append(hosts, r.Host)
		}
	}
	text := or(strings.Join(hosts, ","), "*")
	if more {
		text += fmt.Sprintf(" + %d more...", len(rules)-shownHosts)
	}
	return text
}

func ingressAddress(i *networkingv1.Ingress) string {
	all := sets.New[string]()
	for _, in := range i.Status.LoadBalancer.Ingress {
		if a := or(in.IP, in.Hostname); a != "" {
			all.Insert(a)
		}
	}
	return strings.Join(sets.List(all), ",")
}

func noAddress(at *field.Path, host string) field.ErrorList {
	if netutils.ParseIPSloppy(host) == nil {
		return nil
	}
	return field.ErrorList{field.Invalid(at, host, "must be a DNS name, not an IP address")}
}

// hostName checks a host that may open with a wildcard.
func hostName(at *field.Path, host string) field.ErrorList {
	if strings.Contains(host, "*") {
		return texts(at, host, validation.IsWildcardDNS1123Subdomain(host))
	}
	return texts(at, host, validation.IsDNS1123Subdomain(host))
}

func validateIngress(i *networkingv1.Ingress) (errs field.ErrorList) {
	s, at := &i.Spec, field.NewPath("spec")
	if len(s.Rules) == 0 && s.DefaultBackend == nil {
		errs = append(errs, field.Invalid(at, s.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if b := s.DefaultBackend; b != nil {
		errs = append(errs, backend(b, at.Child("defaultBackend"))...)
	}
	for i := range s.Rules {
		r, at := &s.Rules[i], at.Child("rules").Index(i)
		if r.Host != "" {
			errs = append(errs, noAddress(at.Child("host"), r.Host)...)
			errs = append(errs, hostName(at.Child("host"), r.Host)...)
		}
		if r.HTTP == nil {
			continue
		}
		at = at.Child("http", "paths")
		if len(r.HTTP.Paths) == 0 {
			errs = append(errs, field.Required(at, ""))
		}
		for k := range r.HTTP.Paths {
			errs = append(errs, httpPath(&r.HTTP.Paths[k], at.Index(k))...)
		}
	}
	for i, t := range s.TLS {
		at := at.Child("tls").Index(i)
		for k, host := range t.Hosts {
			errs = append(errs, hostName(at.Child("hosts").Index(k), host)...)
		}
		if t.SecretName != "" {
			errs = append(errs, texts(at.Child("secretName"), t.SecretName, isName(t.SecretName))...)
		}
	}
	if c := s.IngressClassName; c != nil {
		errs = append(errs, texts(at.Child("ingressClassName"), *c, isName(*c))...)
	}
	return errs
}

func httpPath(p *networkingv1.HTTPIngressPath, at *field.Path) (errs field.ErrorList) {
	if p.PathType == nil {
		return field.ErrorList{field.Required(at.Child("pathType"), "pathType must be specified")}
	}
	absolute := strings.HasPrefix(p.Path, "/")
	wrong := func(text string) { errs = append(errs, field.Invalid(at.Child("path"), p.Path, text)) }
	switch *p.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		if !absolute {
			wrong("must be an absolute path")
		}
		for _, s := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(p.Path, s) {
				wrong(fmt.Sprintf("must not contain '%s'", s))
			}
		}
		for _, s := range []string{"/..", "/."} {
			if strings.HasSuffix(p.Path, s) {
				wrong(fmt.Sprintf("cannot end with '%s'", s))
			}
		}
	case networkingv1.PathTypeImplementationSpecific:
		if p.Path != "" && !absolute {
			wrong("must be an absolute path")
		}
	default:
		errs = known(at.Child("pathType"), *p.PathType, networkingv1.PathTypeExact, networkingv1.PathTypePrefix, networkingv1.PathTypeImplementationSpecific)
	}
	return append(errs, backend(&p.Backend, at.Child("backend"))...)
}

func backend(b *networkingv1.IngressBackend, at *field.Path) field.ErrorList {
	switch {
	case b.Resource != nil && b.Service != nil:
		return field.ErrorList{field.Invalid(at, "", "cannot set both resource and service backends")}
	case b.Resource != nil:
		return typedRef(b.Resource, at.Child("resource"))
	case b.Service == nil:
		return field.ErrorList{field.Invalid(at, "", "resource or service backend is required")}
	}
	service := at.Child("service")
	errs := required(service, "name", b.Service.Name)
	if n := b.Service.Name; n != "" {
		errs = append(errs, texts(service.Child("name"), n, validation.IsDNS1123Label(n))...)
	}
	switch p := b.Service.Port; {
	case p.Name != "" && p.Number != 0:
		errs = append(errs, field.Invalid(at, "", "cannot set both port name & port number"))
	case p.Name != "":
		errs = append(errs, texts(service.Child("port", "name"), p.Name, validation.IsValidPortName(p.Name))...)
	case p.Number != 0:
		errs = append(errs, texts(service.Child("port", "number"), p.Number, validation.IsValidPortNum(int(p.Number)))...)
	default:
		errs = append(errs, field.Required(at, "port name or number is required"))
	}
	return errs
}

// typedRef checks a reference to an object of some kind.
func typedRef(r *corev1.TypedLocalObjectReference, at *field.Path) (errs field.ErrorList) {
	if g := r.APIGroup; g != nil {
		errs = append(errs, texts(at.Child("apiGroup"), *g, validation.IsDNS1123Subdomain(*g))...)
	}
	errs = append(errs, pathSegment(at.Child("kind"), r.Kind)...)
	return append(errs, pathSegment(at.Child("name"), r.Name)...)
}

// pathSegment checks a text that must be given and can stand in a URL.
func pathSegment(at *field.Path, value string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	return texts(at, value, pathvalidation.IsValidPathSegmentName(value))
}

// maxControllerName bounds the name of the controller of a class.
const maxControllerName = 250

func ingressClasses() *rest.Resource[*networkingv1.IngressClass] {
	type class = *networkingv1.IngressClass
	return &rest.Resource[class]{
		Default: func(c class) {
			if p := c.Spec.Parameters; p != nil {
				setPtr(&p.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
			}
		},
		Validate: func(c class) (errs field.ErrorList) {
			at := field.NewPath("spec")
			if len(c.Spec.Controller) > maxControllerName {
				errs = append(errs, field.TooLong(at.Child("controller"), c.Spec.Controller, maxControllerName))
			}
			errs = append(errs, validation.IsDomainPrefixedPath(at.Child("controller"), c.Spec.Controller)...)
			return append(errs, classParameters(c.Spec.Parameters, at.Child("parameters"))...)
		},
		ValidateUpdate: func(now, old class) field.ErrorList {
			return immutable(now.Spec.Controller, old.Spec.Controller, field.NewPath("spec", "controller"))
		},
		Columns: []rest.Column[class]{
			{Name: "Name", Format: "name", Description: rest.NameText, Cell: func(c class) any {
				if c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
					return c.Name + " (default)"
				}
				return c.Name
			}},
			{Name: "Controller", Description: "Controller that is responsible for handling this class", Cell: func(c class) any { return c.Spec.Controller }},
			{Name: "Parameters", Description: "A reference to a resource with additional parameters", Cell: func(c class) any {
				p := c.Spec.Parameters
				if p == nil {
					return none
				}
				kind := p.Kind
				if p.APIGroup != nil {
					kind += "." + *p.APIGroup
				}
				return kind + "/" + p.Name
			}},
			{Name: "Age"},
		},
	}
}

func classParameters(p *networkingv1.IngressClassParametersReference, at *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := typedRef(&corev1.TypedLocalObjectReference{APIGroup: p.APIGroup, Kind: p.Kind, Name: p.Name}, at)
	const cluster, namespace = networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace
	switch scope := deref(p.Scope); {
	case p.Scope == nil:
		errs = append(errs, field.Required(at.Child("scope"), ""))
	case !slices.Contains([]string{cluster, namespace}, scope):
		errs = append(errs, field.NotSupported(at.Child("scope"), scope, []string{cluster, namespace}))
	case scope == cluster && p.Namespace != nil:
		errs = append(errs, field.Forbidden(at.Child("namespace"), "`parameters.scope` is set to 'Cluster'"))
	case scope == namespace && p.Namespace == nil:
		errs = append(errs, field.Required(at.Child("namespace"), "`parameters.scope` is set to 'Namespace'"))
	case scope == namespace:
		errs = append(errs, texts(at.Child("namespace"), *p.Namespace, validation.IsDNS1123Label(*p.Namespace))...)
	}
	return errs
}

// balancerPoint checks where a load balancer is reached. Addresses that it had are taken as they are.
func balancerPoint(at *field.Path, ip, hostname string, had []string) (errs field.ErrorList) {
	if ip != "" {
		errs = append(errs, validation.IsValidIPForLegacyField(at.Child("ip"), ip, true, had)...)
	}
	if hostname != "" {
		errs = append(errs, texts(at.Child("hostname"), hostname, validation.IsDNS1123Subdomain(hostname))...)
		errs = append(errs, noAddress(at.Child("hostname"), hostname)...)
	}
	return errs
}
