// Package kubelettest has the peers that tests of the kubelet need, in memory: a CRI runtime and an API. Both work
// inside a testing/synctest bubble: nothing in them waits for anything outside.
package kubelettest
