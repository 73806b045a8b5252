package job

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// indexes is a set of completion indexes, as ranges that are in order and do not touch: what it costs follows the length of
// its text form, "0,2-4,7", and not the number of indexes, of which a few characters can name 2³¹.
type indexes []span

// span is the indexes from first to last, both included.
type span struct{ first, last int }

// parseIndexes reads the text form. What is no number or not below limit is left out.
func parseIndexes(s string, limit int) indexes {
	var set indexes
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.Atoi(first)
		if err != nil {
			continue
		}
		to := from
		if isRange {
			if to, err = strconv.Atoi(last); err != nil {
				continue
			}
		}
		if from, to = max(0, from), min(to, limit-1); from <= to {
			set = append(set, span{from, to})
		}
	}
	slices.SortFunc(set, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	out := set[:0]
	for _, r := range set { // those that overlap or touch become one
		if n := len(out); n > 0 && r.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, r.last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// at returns where the first span is that ends at i or later.
func (s indexes) at(i int) int {
	n, _ := slices.BinarySearchFunc(s, i, func(r span, i int) int { return cmp.Compare(r.last, i) })
	return n
}

func (s indexes) has(i int) bool { return s.free(i) != i }

// free returns the first index from i on that is not in the set.
func (s indexes) free(i int) int {
	if n := s.at(i); n < len(s) && s[n].first <= i {
		return s[n].last + 1
	}
	return i
}

func (s *indexes) add(i int) {
	if s.has(i) {
		return
	}
	r, from := span{i, i}, s.at(i)
	to := from
	if from > 0 && (*s)[from-1].last == i-1 {
		from--
		r.first = (*s)[from].first
	}
	if to < len(*s) && (*s)[to].first == i+1 {
		r.last = (*s)[to].last
		to++
	}
	*s = slices.Replace(*s, from, to, r)
}

func (s *indexes) remove(i int) {
	if !s.has(i) {
		return
	}
	n := s.at(i)
	var rest []span
	if r := (*s)[n]; r.first < i {
		rest = append(rest, span{r.first, i - 1})
	}
	if r := (*s)[n]; i < r.last {
		rest = append(rest, span{i + 1, r.last})
	}
	*s = slices.Replace(*s, n, n+1, rest...)
}

func (s indexes) count() int {
	n := 0
	for _, r := range s {
		n += r.last - r.first + 1
	}
	return n
}

// common returns how many indexes are in both sets.
func (s indexes) common(other indexes) int {
	n := 0
	for i, j := 0, 0; i < len(s) && j < len(other); {
		n += max(0, min(s[i].last, other[j].last)-max(s[i].first, other[j].first)+1)
		if s[i].last < other[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

func (s indexes) String() string {
	var parts []string
	for _, r := range s {
		switch r.last - r.first {
		case 0:
			parts = append(parts, strconv.Itoa(r.first))
		case 1:
			parts = append(parts, strconv.Itoa(r.first), strconv.Itoa(r.last))
		default:
			parts = append(parts, strconv.Itoa(r.first)+"-"+strconv.Itoa(r.last))
		}
	}
	return strings.Join(parts, ",")
}

// indexOf returns the pod's completion index; not ok when it has none or one that job does not have.
func indexOf(job *batchv1.Job, p *corev1.Pod) (int, bool) {
	i, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || i < 0 || job.Spec.Completions == nil || i >= int(*job.Spec.Completions) {
		return 0, false
	}
	return i, true
}

func indexed(job *batchv1.Job) bool {
	return job.Spec.CompletionMode != nil && *job.Spec.CompletionMode == batchv1.IndexedCompletion
}

// failuresOf returns how often the pod's index had failed before it.
func failuresOf(p *corev1.Pod) int {
	n, err := strconv.Atoi(p.Annotations[batchv1.JobIndexFailureCountAnnotation])
	if err != nil {
		return 0
	}
	return n
}
