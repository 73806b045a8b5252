package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/yare-dev/yare/kubelet"
)

// TestEvictionFlags has every setting of eviction given as a flag, and finds it in the kubelet's configuration.
func TestEvictionFlags(t *testing.T) {
	t.Parallel()
	c := defaultConfig()
	command := &cobra.Command{}
	addEviction(command, &c)
	if err := command.ParseFlags(nil); err != nil || c.EvictionHard != nil {
		t.Error("none given is not the usual one:", c.EvictionHard, err)
	}
	err := command.ParseFlags(strings.Fields("--eviction-hard memory.available=1Gi,pid.available=5% --eviction-soft nodefs.available=20% " +
		"--eviction-soft-grace-period nodefs.available=1m --eviction-max-pod-grace-period 30 --eviction-minimum-reclaim memory.available=1Mi " +
		"--eviction-pressure-transition-period 1m --merge-default-eviction-settings"))
	if err != nil {
		t.Fatal(err)
	}
	c.checkEviction(func(field, format string, args ...any) { t.Errorf(field+": "+format, args...) })
	var k kubelet.Config
	c.evict(&k)
	from, to, count := reflect.ValueOf(c), reflect.ValueOf(k), 0
	for i := range to.NumField() {
		name := to.Type().Field(i).Name
		if !strings.Contains(name, "Eviction") {
			continue
		}
		count++
		if had := from.FieldByName(name); !had.IsValid() || had.IsZero() || !reflect.DeepEqual(had.Interface(), to.Field(i).Interface()) {
			t.Errorf("%s is %v", name, to.Field(i).Interface())
		}
	}
	if count != 7 {
		t.Error(count, "settings")
	}
}
