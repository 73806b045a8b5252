package stats

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// page is metrics in Prometheus' text format. It is written directly, and not by way of the library's collectors: a node has some ten thousand
// series, for which these take three times the processor time of all else that a scrape does.
type page struct{ families map[string]*family }

// family is a metric with its series.
type family struct {
	name, help, kind string
	labels           []label // in the order of their names
	lines            []byte
}

// label has the place of its value among those that come with a series.
type label struct {
	name  string
	place int
}

const (
	counter = "counter"
	gauge   = "gauge"
)

// family returns the family of a name. One that is told twice has the labels that it had first.
func (p *page) family(name, help, kind string, labels []string) *family {
	if f := p.families[name]; f != nil {
		return f
	}
	f := &family{name: name, help: help, kind: kind}
	for i, l := range labels {
		f.labels = append(f.labels, label{l, i})
	}
	slices.SortFunc(f.labels, func(a, b label) int { return strings.Compare(a.name, b.name) })
	if p.families == nil {
		p.families = map[string]*family{}
	}
	p.families[name] = f
	return f
}

// single adds a metric that has one value.
func (p *page) single(name, help string, value uint64, labels []string, values []string) {
	p.family(name, help, gauge, labels).add(value, false, values, 0)
}

// add adds a series; at is in nanoseconds, 0: now. Values that do not go with the labels are left out, as upstream does.
func (f *family) add(value uint64, nano bool, values []string, at int64) {
	if len(values) != len(f.labels) {
		return
	}
	b := append(f.lines, f.name...)
	for i, l := range f.labels {
		if b = append(b, ','); i == 0 {
			b[len(b)-1] = '{'
		}
		b = append(append(b, l.name...), '=', '"')
		b = append(appendEscaped(b, values[l.place], true), '"')
	}
	if len(f.labels) > 0 {
		b = append(b, '}')
	}
	if b = append(b, ' '); nano {
		b = strconv.AppendFloat(b, float64(value)/float64(time.Second), 'f', -1, 64)
	} else {
		b = strconv.AppendUint(b, value, 10)
	}
	if at != 0 {
		b = strconv.AppendInt(append(b, ' '), at/int64(time.Millisecond), 10)
	}
	f.lines = append(b, '\n')
}

func appendEscaped(b []byte, text string, quotes bool) []byte {
	if !strings.ContainsAny(text, "\\\n\"") {
		return append(b, text...)
	}
	for _, c := range []byte(text) {
		switch {
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\\' || c == '"' && quotes:
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return b
}

// text returns all families that have series, by name.
func (p *page) text() []byte {
	size := 0
	for _, f := range p.families {
		size += len(f.lines) + len(f.help) + 2*len(f.name) + 64
	}
	b := make([]byte, 0, size)
	for _, name := range slices.Sorted(maps.Keys(p.families)) {
		f := p.families[name]
		if len(f.lines) == 0 {
			continue
		}
		b = append(append(append(b, "# HELP "...), name...), ' ')
		b = append(appendEscaped(b, f.help, false), '\n')
		b = append(append(append(b, "# TYPE "...), name...), ' ')
		b = append(append(b, f.kind...), '\n')
		b = append(b, f.lines...)
	}
	return b
}

// runtime adds what the runtime tells. A runtime that tells times both in seconds, of which CRI has whole ones alone, and as
// _nanoseconds_total, as ours does, has the latter shown as the former.
func (p *page) runtime(descriptors []*runtimeapi.MetricDescriptor, pods []*runtimeapi.PodSandboxMetrics) {
	type target struct {
		*family
		nano, coarse bool
	}
	targets := map[string]*target{}
	for _, d := range descriptors {
		targets[d.Name] = &target{family: p.family(d.Name, d.Help, gauge, d.LabelKeys)}
	}
	for name, t := range targets {
		if seconds, ok := strings.CutSuffix(name, "_nanoseconds_total"); ok {
			if coarse := targets[seconds+"_seconds_total"]; coarse != nil {
				t.family, t.nano, coarse.coarse = coarse.family, true, true
			}
		}
	}
	add := func(metrics []*runtimeapi.Metric) {
		for _, m := range metrics {
			t := targets[m.Name]
			if t == nil || t.coarse || m.Value == nil {
				continue
			}
			if m.MetricType == runtimeapi.MetricType_COUNTER {
				t.kind = counter
			}
			t.add(m.Value.Value, t.nano, m.LabelValues, m.Timestamp)
		}
	}
	for _, pod := range pods {
		add(pod.Metrics)
		for _, c := range pod.ContainerMetrics {
			add(c.Metrics)
		}
	}
}
