package horizontalpodautoscaler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// rules reads "window select policies", such as "60 Max 4p/60 100%/15"; a window of "-" is none.
func rules(text string) *autoscalingv2.HPAScalingRules {
	f := strings.Fields(text)
	if len(f) == 0 {
		return nil
	}
	r := &autoscalingv2.HPAScalingRules{SelectPolicy: ptr(autoscalingv2.ScalingPolicySelect(f[1]))}
	var window int32
	if _, err := fmt.Sscan(f[0], &window); err == nil {
		r.StabilizationWindowSeconds = &window
	}
	for _, p := range f[2:] {
		var policy autoscalingv2.HPAScalingPolicy
		var unit rune
		if _, err := fmt.Sscanf(p, "%d%c/%d", &policy.Value, &unit, &policy.PeriodSeconds); err != nil {
			continue
		}
		policy.Type = autoscalingv2.PodsScalingPolicy
		if unit == '%' {
			policy.Type = autoscalingv2.PercentScalingPolicy
		}
		r.Policies = append(r.Policies, policy)
	}
	return r
}

// Each case is a story of what the metrics want, "seconds:wanted", and of what becomes of it, from a number of pods and within bounds.
func TestSettle(t *testing.T) {
	const usualUp = "0 Max 4p/15 100%/15"
	for _, tt := range []struct {
		name        string
		from        int32
		least, most int32
		up, down    string
		wanted      string
		want        string
	}{
		{"up at once, at most to the double or four", 1, 1, 20, "", "", "0:9 15:9 30:20", "4 ScaleUpLimit, 8 ScaleUpLimit, 16 ScaleUpLimit"},
		{"up to the bound", 3, 1, 5, "", "", "0:9", "5 TooManyReplicas"},
		{"down after five minutes", 5, 2, 9, "", "", "0:1 150:3 299:1 301:1 455:1",
			"5 DesiredWithinRange ScaleDownStabilized, 5 DesiredWithinRange ScaleDownStabilized, 5 DesiredWithinRange ScaleDownStabilized, 3 DesiredWithinRange ScaleDownStabilized, 2 TooFewReplicas"},
		{"four pods a minute", 1, 1, 50, "0 Max 4p/60", "300 Max 100%/15", "0:50 15:50 61:50", "5 ScaleUpLimit, 5 ScaleUpLimit, 9 ScaleUpLimit"},
		{"the larger of two policies", 10, 1, 50, usualUp, "300 Max 100%/15", "0:50 16:50", "20 ScaleUpLimit, 40 ScaleUpLimit"},
		{"the smaller of two policies", 10, 1, 50, "0 Min 4p/15 100%/15", "300 Max 100%/15", "0:50", "14 ScaleUpLimit"},
		{"percentages up are rounded up", 1, 1, 50, "0 Max 10%/15", "300 Max 100%/15", "0:50", "2 ScaleUpLimit"},
		{"no way up", 3, 1, 50, "0 Disabled 4p/15", "300 Max 100%/15", "0:50", "3 ScaleUpLimit"},
		{"down at once, by one pod a minute", 9, 1, 50, usualUp, "0 Max 1p/60", "0:2 15:2 61:2", "8 ScaleDownLimit, 8 ScaleDownLimit, 7 ScaleDownLimit"},
		{"by ten percent", 40, 1, 50, usualUp, "0 Max 10%/60", "0:2", "36 ScaleDownLimit"},
		{"by the smaller of both", 40, 1, 50, usualUp, "0 Min 10%/60 1p/60", "0:2", "39 ScaleDownLimit"},
		{"no way down", 40, 1, 50, usualUp, "0 Disabled 10%/60", "0:2", "40 ScaleDownLimit"},
		{"a window of its own down", 8, 1, 50, usualUp, "60 Max 100%/15", "0:2 45:2 61:2", "8 DesiredWithinRange ScaleDownStabilized, 8 DesiredWithinRange ScaleDownStabilized, 2 DesiredWithinRange"},
		{"the usual window down", 8, 1, 50, usualUp, "- Max 100%/15", "0:2 299:2 301:2", "8 DesiredWithinRange ScaleDownStabilized, 8 DesiredWithinRange ScaleDownStabilized, 2 DesiredWithinRange"},
		{"a window up", 2, 1, 50, "30 Max 100%/15", "0 Max 100%/15", "0:4 15:4 31:4", "2 DesiredWithinRange ScaleUpStabilized, 2 DesiredWithinRange ScaleUpStabilized, 4 DesiredWithinRange"},
		{"no fewer than the least", 4, 3, 50, usualUp, "0 Max 100%/15", "0:1", "3 TooFewReplicas"},
		{"no more than the most", 4, 3, 6, usualUp, "0 Max 100%/15", "0:9", "6 TooManyReplicas"},
	} {
		l := limits{least: tt.least, most: tt.most}
		if tt.up != "" {
			l.behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: rules(tt.up), ScaleDown: rules(tt.down)}
		}
		var h history
		h.begin(tt.from, now)
		current := tt.from
		var got []string
		for _, step := range strings.Fields(tt.wanted) {
			var at, wanted int32
			if _, err := fmt.Sscanf(step, "%d:%d", &at, &wanted); err != nil {
				t.Fatal(err)
			}
			then := now.Add(time.Duration(at) * time.Second)
			v := h.settle(l, current, wanted, then)
			if v.replicas != current {
				h.changed(l.behavior, current, v.replicas, then)
			}
			current = v.replicas
			text := fmt.Sprint(v.replicas, " ", v.reason)
			if v.able != readyReason {
				text += " " + v.able
			}
			if v.limited != (v.reason != "DesiredWithinRange") {
				t.Errorf("%s: limited is %v", tt.name, v.limited)
			}
			got = append(got, text)
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, s, tt.want)
		}
	}
}
