package csi_test

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/yare-dev/yare/csi"
	"github.com/yare-dev/yare/csi/csitest"
)

// The driver of the tests over its socket and in process keeps to the suite, and is called as the specification has it.
func TestSuite(t *testing.T) {
	for _, can := range [][]csi.Capability{nil, {spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, spec.NodeServiceCapability_RPC_GET_VOLUME_STATS}} {
		d := csitest.New("d", t.TempDir())
		d.Can, d.Stats = can, &spec.NodeGetVolumeStatsResponse{}
		socket := filepath.Join(t.TempDir(), "s")
		stop, err := d.Serve(socket)
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		c, err := csi.Dial("d", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for name, n := range map[string]csi.Node{"socket": c, "in process": d.Client()} {
			t.Run(name, func(t *testing.T) { csitest.Suite(t, n, csitest.Volume{Handle: "v"}) })
		}
		if b := slices.Compact(d.Broken()); !slices.Equal(b, []string{"Publish : a field is missing"}) {
			t.Error(b)
		}
	}
}

// The driver of the tests notes what may not be.
func TestOrder(t *testing.T) {
	d := csitest.New("d", t.TempDir())
	err := d.Client().Publish(t.Context(), &spec.NodePublishVolumeRequest{VolumeId: "v", TargetPath: "/x/y", VolumeCapability: &spec.VolumeCapability{}})
	if csi.Code(err) != codes.FailedPrecondition || !slices.Equal(d.Broken(), []string{"Publish v: it is not staged"}) {
		t.Error(err, d.Broken())
	}
}

func TestErrors(t *testing.T) {
	d := csitest.New("disk.example.com", t.TempDir())
	var fail error
	d.Hook = func(string, string, bool) error { return fail }
	publish := func() error {
		return d.Client().Publish(t.Context(), &spec.NodePublishVolumeRequest{Secrets: map[string]string{"user": "me", "password": "me and you", "none": ""},
			VolumeContext: map[string]string{csi.Tokens: `{"vault":{"token":"t-1","expirationTimestamp":null}}`, "size": "1"}})
	}
	for _, c := range []struct {
		err  error
		want string
		code codes.Code
	}{
		{status.Error(codes.Internal, "no disk"), "driver disk.example.com: NodePublishVolume: Internal: no disk", codes.Internal},
		{status.Error(codes.Unavailable, "x"), "driver disk.example.com: NodePublishVolume: Unavailable: x: is the driver running on this node?", codes.Unavailable},
		{status.Error(codes.Unauthenticated, "user=me password=me and you"), "Unauthenticated: user=*** password=***: look at the Secrets", codes.Unauthenticated},
		{status.Error(codes.Internal, "size=1 token=t-1"), "Internal: size=1 token=***", codes.Internal},
		{context.DeadlineExceeded, "did not answer within 2m0s", codes.DeadlineExceeded},
		{errors.New("plain"), "Unknown: plain", codes.Unknown},
	} {
		fail = c.err
		err := publish()
		if err == nil || !strings.Contains(err.Error(), c.want) || csi.Code(err) != c.code {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	if csi.Code(nil) != codes.OK || csi.Code(errors.New("x")) != codes.Unknown || csi.Infeasible(nil) || !csi.Infeasible(&csi.Error{Code: codes.OutOfRange}) {
		t.Error("codes")
	}
}

// silent does not answer.
type silent struct{ spec.NodeClient }

func (silent) NodeUnstageVolume(ctx context.Context, _ *spec.NodeUnstageVolumeRequest, _ ...grpc.CallOption) (*spec.NodeUnstageVolumeResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A driver that does not answer is given up.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		err := csi.New("d", silent{}).Unstage(t.Context(), &spec.NodeUnstageVolumeRequest{VolumeId: "v"})
		if csi.Code(err) != codes.DeadlineExceeded || time.Since(begin) != 2*time.Minute {
			t.Error(time.Since(begin), err)
		}
	})
	if _, err := csi.Dial("d", "relative"); err == nil {
		t.Error("a relative path was taken")
	}
}

// A driver that was away is found again, and asked anew what it can do.
func TestReturns(t *testing.T) {
	d := csitest.New("d", t.TempDir())
	socket := filepath.Join(t.TempDir(), "s")
	stop, err := d.Serve(socket)
	if err != nil {
		t.Fatal(err)
	}
	c, err := csi.Dial("d", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if can, err := c.Capabilities(t.Context()); err != nil || len(can) != 1 {
		t.Error(can, err)
	}
	stop()
	if _, err := c.Info(t.Context()); csi.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	d.Can = append(d.Can, spec.NodeServiceCapability_RPC_EXPAND_VOLUME)
	if stop, err = d.Serve(socket); err != nil {
		t.Fatal(err)
	}
	defer stop()
	for {
		can, err := c.Capabilities(t.Context())
		if csi.Code(err) == codes.Unavailable {
			runtime.Gosched() // it connects meanwhile
			continue
		}
		if err != nil || len(can) != 2 {
			t.Error(can, err)
		}
		break
	}
}

// Capabilities are asked for once; health is asked for where the driver tells it.
func TestStats(t *testing.T) {
	d := csitest.New("d", t.TempDir())
	c := d.Client()
	if s, err := c.Stats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: "v"}); err != nil || s.Usage != nil || s.Health != nil {
		t.Error(s, err)
	}
	d.Can = append(d.Can, spec.NodeServiceCapability_RPC_GET_VOLUME_STATS, spec.NodeServiceCapability_RPC_GET_VOLUME_HEALTH)
	d.Stats = &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{{Total: 7}}}
	if s, err := c.Stats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: "v"}); err != nil || s.Usage != nil {
		t.Error("capabilities are asked for again:", s, err)
	}
	if s, err := d.Client().Stats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: "v"}); err != nil || len(s.Usage) != 1 || s.Health == nil {
		t.Error(s, err)
	}
}
