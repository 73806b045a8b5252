package stats

import (
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// page is metrics in Prometheus' text format. It is written directly, and not by way of the library's collectors: a node has some ten thousand
// series, for which these take several times the processor time of all else that a scrape does.
type page struct {
	families map[string]*family
	sets     map[string]*labelSet // by the names
}

// family is a metric with its series.
type family struct {
	name, help, kind string
	labels           *labelSet
	series           []series
}

// series is a metric in CRI's words; nano says that its value is in nanoseconds and shown in seconds.
type series struct {
	*runtimeapi.Metric
	nano bool
}

// labelSet are labels that some families have.
type labelSet struct {
	labels []label // in the order of their names
	// told are their texts, by the first value's place in memory: all metrics of a container have the same values in the same place.
	told map[*string][]byte
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
	if p.families == nil {
		p.families, p.sets = map[string]*family{}, map[string]*labelSet{}
	}
	key := strings.Join(labels, ",")
	set := p.sets[key]
	if set == nil {
		set = &labelSet{told: map[*string][]byte{}}
		for i, l := range labels {
			set.labels = append(set.labels, label{l, i})
		}
		slices.SortFunc(set.labels, func(a, b label) int { return strings.Compare(a.name, b.name) })
		p.sets[key] = set
	}
	f := &family{name: name, help: help, kind: kind, labels: set}
	p.families[name] = f
	return f
}

// single adds a metric that has one value.
func (p *page) single(name, help string, value uint64, labels []string, values []string) {
	p.family(name, help, gauge, labels).add(series{told(value, values), false}, 1)
}

// told is a value in CRI's words.
func told(value uint64, labels []string) *runtimeapi.Metric {
	return &runtimeapi.Metric{LabelValues: labels, Value: &runtimeapi.UInt64Value{Value: value}}
}

// add adds a series, which is not changed afterwards, to a family of about as many as room says. Values that do not go with the labels are
// left out, as upstream does.
func (f *family) add(s series, room int) {
	if len(s.LabelValues) != len(f.labels.labels) {
		return
	}
	if f.series == nil {
		f.series = make([]series, 0, room)
	}
	f.series = append(f.series, s)
}

// text returns `{name="value",...}`.
func (l *labelSet) text(values []string) []byte {
	if len(values) == 0 {
		return nil
	}
	if b := l.told[&values[0]]; b != nil {
		return b
	}
	b := append(make([]byte, 0, 384), '{')
	for i, one := range l.labels {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, one.name...), '=', '"')
		b = append(appendEscaped(b, values[one.place], true), '"')
	}
	b = append(b, '}')
	l.told[&values[0]] = b
	return b
}

func (s *series) append(b []byte, f *family) []byte {
	b = append(append(append(b, f.name...), f.labels.text(s.LabelValues)...), ' ')
	if s.nano {
		b = strconv.AppendFloat(b, float64(s.Value.Value)/float64(time.Second), 'f', -1, 64)
	} else {
		b = strconv.AppendUint(b, s.Value.Value, 10)
	}
	if s.Timestamp != 0 { // else: now
		b = strconv.AppendInt(append(b, ' '), s.Timestamp/int64(time.Millisecond), 10)
	}
	return append(b, '\n')
}

func appendEscaped(b []byte, text string, quotes bool) []byte {
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

// writeAt is how much is written at once.
const writeAt = 64 << 10

// write writes all families that have series, by name.
func (p *page) write(w io.Writer) error {
	b := make([]byte, 0, writeAt+4<<10)
	for _, name := range slices.Sorted(maps.Keys(p.families)) {
		f := p.families[name]
		if len(f.series) == 0 {
			continue
		}
		b = append(append(append(b, "# HELP "...), name...), ' ')
		b = append(appendEscaped(b, f.help, false), '\n')
		b = append(append(append(b, "# TYPE "...), name...), ' ')
		b = append(append(b, f.kind...), '\n')
		for i := range f.series {
			if b = f.series[i].append(b, f); len(b) < writeAt {
				continue
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	_, err := w.Write(b)
	return err
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
	room := 8 // with the node's own
	for _, pod := range pods {
		room += 1 + len(pod.ContainerMetrics)
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
			t.add(series{m, t.nano}, room)
		}
	}
	for _, pod := range pods {
		add(pod.Metrics)
		for _, c := range pod.ContainerMetrics {
			add(c.Metrics)
		}
	}
}
