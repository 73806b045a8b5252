package main

import (
	"github.com/spf13/cobra"

	"github.com/yare-dev/yare/kubelet"
)

// evict sets what is said of eviction in the kubelet's configuration.
func (c Config) evict(k *kubelet.Config) {
	k.EvictionHard, k.MergeDefaultEvictionSettings = c.EvictionHard, c.MergeDefaultEvictionSettings
	k.EvictionSoft, k.EvictionSoftGracePeriod, k.EvictionMaxPodGracePeriod = c.EvictionSoft, c.EvictionSoftGracePeriod, c.EvictionMaxPodGracePeriod
	k.EvictionMinimumReclaim = c.EvictionMinimumReclaim
	if c.EvictionPressureTransitionPeriod.Duration != 0 {
		k.EvictionPressureTransitionPeriod = c.EvictionPressureTransitionPeriod
	}
}

// effectEviction fills in what is usual of what is not said.
func (c *Config) effectEviction() {
	var k kubelet.Config
	c.evict(&k)
	k = k.Effective()
	c.EvictionHard, c.EvictionPressureTransitionPeriod = k.EvictionHard, k.EvictionPressureTransitionPeriod
}

// checkEviction tells problem of every mistake in what is said of eviction.
func (c Config) checkEviction(problem func(field, format string, args ...any)) {
	var k kubelet.Config
	c.evict(&k)
	k.CheckEviction(problem)
}

// addEviction adds the settings as flags, by the names of upstream's kubelet.
func addEviction(to *cobra.Command, c *Config) {
	f := to.Flags()
	f.StringToStringVar(&c.EvictionHard, "eviction-hard", nil,
		"thresholds below which pods are evicted at once: memory.available=100Mi,... ('yare config --help' says which there are, and the usual ones)")
	f.StringToStringVar(&c.EvictionSoft, "eviction-soft", nil, "thresholds that have to be met for some time")
	f.StringToStringVar(&c.EvictionSoftGracePeriod, "eviction-soft-grace-period", nil, "for how long: memory.available=1m30s")
	f.Int32Var(&c.EvictionMaxPodGracePeriod, "eviction-max-pod-grace-period", 0, "the most seconds that these give a pod to end")
	f.StringToStringVar(&c.EvictionMinimumReclaim, "eviction-minimum-reclaim", nil, "how much more than its threshold each signal must have before pods stop being evicted")
	f.DurationVar(&c.EvictionPressureTransitionPeriod.Duration, "eviction-pressure-transition-period", 0, "how long conditions of pressure outlast their reasons (default 5m)")
	f.BoolVar(&c.MergeDefaultEvictionSettings, "merge-default-eviction-settings", false, "keep the usual --eviction-hard of signals that it does not name")
	for _, name := range []string{"eviction-hard", "eviction-soft", "eviction-soft-grace-period", "eviction-minimum-reclaim"} {
		f.Lookup(name).DefValue = "" // which is not said: none given is not none
	}
}
