package horizontalpodautoscaler

import (
	"math"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// downWindow is for how long a lower number of pods waits where the behavior does not say.
const downWindow = 5 * time.Minute

// Without a behavior the number of pods may double at once, or become four.
const (
	upFactor = 2
	upLeast  = 4
)

// recommendation is what the metrics asked for at a time.
type recommendation struct {
	replicas int32
	at       time.Time
}

// change is by how many the pods became more, or fewer, at a time.
type change struct {
	by int32
	at time.Time
}

// history is what is remembered of an autoscaler: from the outset nothing. A process that starts anew waits as long as a window is.
type history struct {
	recommended []recommendation
	ups, downs  []change
}

// limits are the bounds between which an autoscaler moves.
type limits struct {
	least, most int32
	behavior    *autoscalingv2.HorizontalPodAutoscalerBehavior // nil: the usual one
}

// verdict is what became of a wanted number of pods, and why.
type verdict struct {
	replicas        int32
	able, ableWhy   string // reason and message of AbleToScale, which is true
	limited         bool
	reason, message string // of ScalingLimited
}

const (
	readyReason  = "ReadyForNewScale"
	readyMessage = "recommended size matches current size"
	downReason   = "ScaleDownStabilized"
	downMessage  = "recent recommendations were higher than current one, applying the highest recent recommendation"
	upReason     = "ScaleUpStabilized"
	upMessage    = "recent recommendations were lower than current one, applying the lowest recent recommendation"
)

// settle returns to how many pods to go from current when the metrics want wanted, and notes in h what they want.
func (h *history) settle(l limits, current, wanted int32, now time.Time) verdict {
	if l.behavior == nil {
		return h.usual(l, current, wanted, now)
	}
	up, down := l.behavior.ScaleUp, l.behavior.ScaleDown
	upWindow, longest := window(up, 0), window(down, downWindow)
	n, reason, message := h.stabilize(current, wanted, upWindow, longest, now)
	h.note(wanted, max(upWindow, longest), now)
	v := verdict{replicas: n, able: readyReason, ableWhy: readyMessage}
	if n != wanted {
		v.able, v.ableWhy = reason, message
	}
	v.replicas, v.reason, v.message = h.rate(l, up, down, current, n, now)
	v.limited = v.replicas != n
	return v
}

// usual is settle without a behavior.
func (h *history) usual(l limits, current, wanted int32, now time.Time) verdict {
	n := wanted
	for _, r := range h.recommended {
		if !r.at.Before(now.Add(-downWindow)) {
			n = max(n, r.replicas)
		}
	}
	h.note(wanted, downWindow, now)
	v := verdict{able: readyReason, ableWhy: readyMessage}
	if n != wanted {
		v.able, v.ableWhy = downReason, downMessage
	}
	most, reason, message := l.most, "TooManyReplicas", "the desired replica count is more than the maximum replica count"
	if limit := max(upFactor*int64(current), upLeast); int64(most) > limit {
		most, reason, message = int32(limit), "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"
	}
	v.replicas, v.reason, v.message = n, "DesiredWithinRange", "the desired count is within the acceptable range"
	switch {
	case n < l.least:
		v.replicas, v.reason, v.message = l.least, "TooFewReplicas", "the desired replica count is less than the minimum replica count"
	case n > most:
		v.replicas, v.reason, v.message = most, reason, message
	}
	v.limited = v.replicas != n
	return v
}

// note remembers what is wanted, and forgets what is older than the longest window.
func (h *history) note(wanted int32, longest time.Duration, now time.Time) {
	h.recommended = slices.DeleteFunc(h.recommended, func(r recommendation) bool { return r.at.Before(now.Add(-longest)) })
	h.recommended = append(h.recommended, recommendation{wanted, now})
}

// begin remembers where an autoscaler began, so that it does not go below at once.
func (h *history) begin(current int32, now time.Time) {
	if h.recommended == nil {
		h.recommended = []recommendation{{current, now}}
	}
}

// stabilize keeps what is wanted between the least that was wanted in the window up and the most that was in the window down.
func (h *history) stabilize(current, wanted int32, up, down time.Duration, now time.Time) (n int32, reason, message string) {
	low, high := wanted, wanted
	for _, r := range h.recommended {
		if r.at.After(now.Add(-up)) {
			low = min(low, r.replicas)
		}
		if r.at.After(now.Add(-down)) {
			high = max(high, r.replicas)
		}
	}
	n = min(max(current, low), high)
	if wanted >= current {
		return n, upReason, upMessage
	}
	return n, downReason, downMessage
}

// rate keeps a change within what the policies and bounds allow.
func (h *history) rate(l limits, up, down *autoscalingv2.HPAScalingRules, current, wanted int32, now time.Time) (n int32, reason, message string) {
	switch {
	case wanted > current:
		most, reason, message := l.most, "TooManyReplicas", "the desired replica count is more than the maximum replica count"
		if limit := max(h.allowed(up, current, true, now), current); most > limit {
			most, reason, message = limit, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"
		}
		if wanted > most {
			return most, reason, message
		}
	case wanted < current:
		least, reason, message := l.least, "TooFewReplicas", "the desired replica count is less than the minimum replica count"
		if limit := min(h.allowed(down, current, false, now), current); least < limit {
			least, reason, message = limit, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"
		}
		if wanted < least {
			return least, reason, message
		}
	}
	return wanted, "DesiredWithinRange", "the desired count is within the acceptable range"
}

// allowed returns how far the policies let the number of pods go.
func (h *history) allowed(r *autoscalingv2.HPAScalingRules, current int32, up bool, now time.Time) int32 {
	choose := autoscalingv2.MaxChangePolicySelect
	if r != nil && r.SelectPolicy != nil {
		choose = *r.SelectPolicy
	}
	if choose == autoscalingv2.DisabledPolicySelect || r == nil || len(r.Policies) == 0 {
		return current
	}
	limits := make([]int32, 0, len(r.Policies))
	for _, p := range r.Policies {
		period := time.Duration(p.PeriodSeconds) * time.Second
		limits = append(limits, furthest(p, current-within(h.ups, period, now)+within(h.downs, period, now), up))
	}
	if up == (choose == autoscalingv2.MaxChangePolicySelect) { // the largest change up and the least one down end highest
		return slices.Max(limits)
	}
	return slices.Min(limits)
}

// furthest is how far one policy goes from the number of pods at the start of its period.
func furthest(p autoscalingv2.HPAScalingPolicy, start int32, up bool) int32 {
	by := p.Value
	if !up {
		by = -by
	}
	if p.Type == autoscalingv2.PodsScalingPolicy {
		return int32(min(int64(start)+int64(by), math.MaxInt32))
	}
	f := float64(start) * (1 + float64(by)/100)
	if up { // or it might never begin
		return ceil(f)
	}
	return int32(f)
}

func within(changes []change, period time.Duration, now time.Time) (n int32) {
	for _, c := range changes {
		if c.at.After(now.Add(-period)) {
			n += c.by
		}
	}
	return n
}

// changed remembers a change of the number of pods for as long as a policy asks for it.
func (h *history) changed(b *autoscalingv2.HorizontalPodAutoscalerBehavior, from, to int32, now time.Time) {
	if b == nil {
		return
	}
	list, rules, by := &h.ups, b.ScaleUp, to-from
	if to < from {
		list, rules, by = &h.downs, b.ScaleDown, from-to
	}
	longest := int32(0)
	if rules != nil {
		for _, p := range rules.Policies {
			longest = max(longest, p.PeriodSeconds)
		}
	}
	cutoff := now.Add(-time.Duration(longest) * time.Second)
	*list = append(slices.DeleteFunc(*list, func(c change) bool { return c.at.Before(cutoff) }), change{by, now})
}

// window is for how long a change waits; otherwise where the rules do not say.
func window(r *autoscalingv2.HPAScalingRules, otherwise time.Duration) time.Duration {
	if r == nil || r.StabilizationWindowSeconds == nil {
		return otherwise
	}
	return time.Duration(*r.StabilizationWindowSeconds) * time.Second
}
