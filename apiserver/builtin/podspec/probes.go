package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// lifecycle checks the probes and handlers of a container that stays.
func (v *check) lifecycle(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	if l := c.Lifecycle; l != nil {
		p := path.Child("lifecycle")
		errs = append(errs, v.hook(l.PostStart, p.Child("postStart"))...)
		errs = append(errs, v.hook(l.PreStop, p.Child("preStop"))...)
		errs = append(errs, v.stopSignal(l.StopSignal, p.Child("stopSignal"))...)
	}
	errs = append(errs, v.probe(c.LivenessProbe, path.Child("livenessProbe"))...)
	errs = append(errs, v.probe(c.ReadinessProbe, path.Child("readinessProbe"))...)
	errs = append(errs, v.probe(c.StartupProbe, path.Child("startupProbe"))...)
	once := func(p *corev1.Probe, name string) {
		if p != nil && p.SuccessThreshold != 1 {
			errs = append(errs, field.Invalid(path.Child(name, "successThreshold"), p.SuccessThreshold, "must be 1"))
		}
	}
	once(c.LivenessProbe, "livenessProbe")
	once(c.StartupProbe, "startupProbe")
	if p := c.ReadinessProbe; p != nil && p.TerminationGracePeriodSeconds != nil {
		errs = append(errs, field.Invalid(path.Child("readinessProbe", "terminationGracePeriodSeconds"),
			*p.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
	}
	return errs
}

func (v *check) probe(p *corev1.Probe, path *field.Path) (errs field.ErrorList) {
	if p == nil {
		return nil
	}
	h := p.ProbeHandler
	errs = v.handler(handler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, grpc: h.GRPC}, path)
	errs = append(errs, apivalidation.ValidateNonnegativeField(int64(p.InitialDelaySeconds), path.Child("initialDelaySeconds"))...)
	errs = append(errs, apivalidation.ValidateNonnegativeField(int64(p.TimeoutSeconds), path.Child("timeoutSeconds"))...)
	errs = append(errs, apivalidation.ValidateNonnegativeField(int64(p.PeriodSeconds), path.Child("periodSeconds"))...)
	errs = append(errs, apivalidation.ValidateNonnegativeField(int64(p.SuccessThreshold), path.Child("successThreshold"))...)
	errs = append(errs, apivalidation.ValidateNonnegativeField(int64(p.FailureThreshold), path.Child("failureThreshold"))...)
	if g := p.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0"))
	}
	return errs
}

func (v *check) hook(h *corev1.LifecycleHandler, path *field.Path) field.ErrorList {
	if h == nil {
		return nil
	}
	return v.handler(handler{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}, path)
}

// handler is what probes and hooks have in common.
type handler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func (v *check) handler(h handler, path *field.Path) (errs field.ErrorList) {
	n := 0
	one := func(set bool, name string, check func(at *field.Path) field.ErrorList) {
		if !set {
			return
		}
		at := path.Child(name)
		if n++; n > 1 {
			errs = append(errs, field.Forbidden(at, "may not specify more than 1 handler type"))
			return
		}
		errs = append(errs, check(at)...)
	}
	one(h.exec != nil, "exec", func(at *field.Path) field.ErrorList {
		if len(h.exec.Command) == 0 {
			return field.ErrorList{field.Required(at.Child("command"), "")}
		}
		return nil
	})
	one(h.http != nil, "httpGet", func(at *field.Path) field.ErrorList { return httpGet(h.http, at) })
	one(h.tcp != nil, "tcpSocket", func(at *field.Path) field.ErrorList { return port(h.tcp.Port, at.Child("port")) })
	one(h.grpc != nil, "grpc", func(at *field.Path) field.ErrorList { return port(intstr.FromInt32(h.grpc.Port), at.Child("port")) })
	one(h.sleep != nil, "sleep", func(at *field.Path) field.ErrorList {
		if s := h.sleep.Seconds; s < 0 || s > v.grace() {
			return field.ErrorList{field.Invalid(at, s,
				fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", v.grace()))}
		}
		return nil
	})
	if n == 0 {
		errs = append(errs, field.Required(path, "must specify a handler type"))
	}
	return errs
}

func httpGet(a *corev1.HTTPGetAction, path *field.Path) (errs field.ErrorList) {
	if a.Path == "" {
		errs = append(errs, field.Required(path.Child("path"), ""))
	}
	errs = append(errs, port(a.Port, path.Child("port"))...)
	errs = append(errs, oneOf(path.Child("scheme"), a.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
	for _, h := range a.HTTPHeaders {
		errs = append(errs, texts(path.Child("httpHeaders"), h.Name, validation.IsHTTPHeaderName(h.Name))...)
	}
	return errs
}

// port checks a port given by number or name.
func port(p intstr.IntOrString, path *field.Path) field.ErrorList {
	if p.Type == intstr.Int {
		return texts(path, p.IntValue(), validation.IsValidPortNum(p.IntValue()))
	}
	return texts(path, p.StrVal, validation.IsValidPortName(p.StrVal))
}

func (v *check) stopSignal(s *corev1.Signal, path *field.Path) (errs field.ErrorList) {
	if s == nil {
		return nil
	}
	if v.spec.OS == nil {
		return field.ErrorList{field.Forbidden(path, "may not be set for containers with empty `spec.os.name`")}
	}
	if v.spec.OS.Name == corev1.Windows {
		return oneOf(path, *s, corev1.SIGTERM, corev1.SIGKILL)
	}
	return known(path, string(*s), signals...)
}

// signals are those of Linux by name.
var signals = allSignals(strings.Fields("SIGABRT SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGFPE SIGHUP SIGILL SIGINT SIGIO SIGIOT " +
	"SIGKILL SIGPIPE SIGPOLL SIGPROF SIGPWR SIGQUIT SIGSEGV SIGSTKFLT SIGSTOP SIGSYS SIGTERM SIGTRAP SIGTSTP SIGTTIN " +
	"SIGTTOU SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ SIGRTMIN SIGRTMAX"))

// allSignals adds those of real time, which are counted from both ends.
func allSignals(names []string) []string {
	for n := 1; n <= 15; n++ {
		names = append(names, fmt.Sprintf("SIGRTMIN+%d", n))
	}
	for n := 1; n <= 14; n++ {
		names = append(names, fmt.Sprintf("SIGRTMAX-%d", n))
	}
	return names
}
