package builtin

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Limits of what is said of an allocated device.
const (
	maxDeviceConditions = 8
	maxDeviceData       = 10 << 10
	maxInterfaceName    = 256
	maxHardwareAddress  = 128
	maxDeviceIPs        = 16
)

// allocated names one allocated device, or a share of one.
type allocated struct{ driver, pool, device, share string }

// String is the form in which upstream's messages show it.
func (a allocated) String() string {
	s := a.driver + "/" + a.pool + "/" + a.device
	if a.share != "" {
		s += "/" + a.share
	}
	return s
}

func ofStatus(s resourcev1.AllocatedDeviceStatus) allocated {
	return allocated{s.Driver, s.Pool, s.Device, deref(s.ShareID)}
}

func allocatedDevices(a *resourcev1.AllocationResult) sets.Set[allocated] {
	set := sets.New[allocated]()
	if a != nil {
		for _, r := range a.Devices.Results {
			set.Insert(allocated{r.Driver, r.Pool, r.Device, string(deref(r.ShareID))})
		}
	}
	return set
}

// claimStatus takes the allocation from those who may bind claims and the state of devices from those who may speak for
// their driver.
func (d Deps) claimStatus(ctx context.Context, now, old api.Object) field.ErrorList {
	n, o := now.(*resourcev1.ResourceClaim), old.(*resourcev1.ResourceClaim)
	n.Spec = *o.Spec.DeepCopy()
	rest.KeepMeta(n, o)
	if a := n.Status.Allocation; a != nil {
		for i := range a.Devices.Results {
			if o.Status.Allocation == nil {
				a.Devices.Results[i].SkipNodeOperations = nil // an alpha feature of upstream, off by default there
			}
		}
	}
	gone := allocatedDevices(o.Status.Allocation).Difference(allocatedDevices(n.Status.Allocation))
	n.Status.Devices = slices.DeleteFunc(n.Status.Devices, func(s resourcev1.AllocatedDeviceStatus) bool { return gone.Has(ofStatus(s)) })
	if len(n.Status.Devices) == 0 {
		n.Status.Devices = nil
	}
	errs := d.adminStatus(n, o)
	errs = append(errs, d.mayBindClaim(ctx, n, o)...)
	if n.Status.Allocation != nil {
		errs = append(errs, d.maySpeakForDrivers(ctx, n, o)...)
	}
	return append(errs, claimStatusErrors(n, o)...)
}

func (d Deps) adminStatus(now, old *resourcev1.ResourceClaim) field.ErrorList {
	admin := func(c *resourcev1.ResourceClaim) int {
		if c.Status.Allocation == nil {
			return -1
		}
		return slices.IndexFunc(c.Status.Allocation.Devices.Results, func(r resourcev1.DeviceRequestAllocationResult) bool { return deref(r.AdminAccess) })
	}
	if i := admin(now); i >= 0 && admin(old) < 0 {
		return d.adminNamespace(now.Namespace, field.NewPath("status", "allocation", "devices", "results").Index(i).Child("adminAccess"))
	}
	return nil
}

// ask asks for a permission that stands for a part of the status.
func (d Deps) ask(ctx context.Context, verb, sub, namespace, name string) error {
	ok, reason, err := d.Access.Authorize(ctx, &authz.Attributes{User: authn.UserFrom(ctx), Verb: verb, Group: resourcev1.GroupName, Version: "v1",
		Resource: "resourceclaims", Subresource: sub, Namespace: namespace, Name: name})
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("user cannot %s resource \"resourceclaims/%s\": %s", verb, sub, reason)
	}
	return nil
}

func (d Deps) mayBindClaim(ctx context.Context, now, old *resourcev1.ResourceClaim) field.ErrorList {
	if equality.Semantic.DeepEqual(now.Status.Allocation, old.Status.Allocation) && equality.Semantic.DeepEqual(now.Status.ReservedFor, old.Status.ReservedFor) {
		return nil
	}
	if err := d.ask(ctx, "update", "binding", "", ""); err != nil {
		return field.ErrorList{field.Forbidden(field.NewPath("status", "allocation"),
			fmt.Sprintf(`changing status.allocation or status.reservedFor requires resource="resourceclaims/binding", verb="update" permission: %s`, err))}
	}
	return nil
}

func (d Deps) maySpeakForDrivers(ctx context.Context, now, old *resourcev1.ResourceClaim) (errs field.ErrorList) {
	before := map[allocated]resourcev1.AllocatedDeviceStatus{}
	for _, s := range old.Status.Devices {
		before[ofStatus(s)] = s
	}
	drivers := sets.New[string]()
	for _, s := range now.Status.Devices {
		if was, ok := before[ofStatus(s)]; !ok || !equality.Semantic.DeepEqual(was, s) {
			drivers.Insert(s.Driver)
		}
		delete(before, ofStatus(s))
	}
	for k := range before {
		drivers.Insert(k.driver)
	}
	verbs := []string{"arbitrary-node:update"}
	if node := allocatedNode(now.Status.Allocation); node != "" && slices.Equal(authn.UserFrom(ctx).Extra["authentication.kubernetes.io/node-name"], []string{node}) {
		verbs = []string{"associated-node:update", "arbitrary-node:update"}
	}
	for _, driver := range sets.List(drivers) {
		var first error
		for _, v := range verbs {
			err := d.ask(ctx, v, "driver", now.Namespace, driver)
			if err == nil {
				first = nil
				break
			}
			if first == nil {
				first = err
			}
		}
		if first != nil {
			errs = append(errs, field.Forbidden(field.NewPath("status", "devices"),
				fmt.Sprintf(`changing status.devices requires resource="resourceclaims/driver", verb="%s" permission: %s`, verbs, first)))
		}
	}
	return errs
}

// allocatedNode is the one node that an allocation is for, if it is for one.
func allocatedNode(a *resourcev1.AllocationResult) string {
	if a.NodeSelector == nil || len(a.NodeSelector.NodeSelectorTerms) != 1 {
		return ""
	}
	t := a.NodeSelector.NodeSelectorTerms[0]
	if len(t.MatchExpressions) != 0 || len(t.MatchFields) != 1 {
		return ""
	}
	f := t.MatchFields[0]
	if f.Key != "metadata.name" || f.Operator != corev1.NodeSelectorOpIn || len(f.Values) != 1 {
		return ""
	}
	return f.Values[0]
}

func claimStatusErrors(now, old *resourcev1.ResourceClaim) field.ErrorList {
	s, at := &now.Status, field.NewPath("status")
	reserved, allocation := at.Child("reservedFor"), at.Child("allocation")
	errs := atMost(s.ReservedFor, resourcev1.ResourceClaimReservedForMaxSize, reserved, func(r *resourcev1.ResourceClaimConsumerReference, at *field.Path) (errs field.ErrorList) {
		for _, f := range [][2]string{{"resource", r.Resource}, {"name", r.Name}, {"uid", string(r.UID)}} {
			if f[1] == "" {
				errs = append(errs, field.Required(at.Child(f[0]), ""))
			}
		}
		return errs
	})
	known := allocatedDevices(s.Allocation)
	for i := range s.Devices {
		errs = append(errs, deviceStatus(&s.Devices[i], known, at.Child("devices").Index(i))...)
	}
	if len(s.ReservedFor) > 0 {
		fresh := slices.ContainsFunc(s.ReservedFor, func(r resourcev1.ResourceClaimConsumerReference) bool {
			return !slices.Contains(old.Status.ReservedFor, r)
		})
		switch {
		case s.Allocation == nil:
			errs = append(errs, field.Forbidden(reserved, "may not be specified when `allocated` is not set"))
		case now.DeletionTimestamp != nil && fresh:
			errs = append(errs, field.Forbidden(reserved, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"))
		}
	}
	switch {
	case s.Allocation == nil:
	case old.Status.Allocation == nil:
		errs = append(errs, claimAllocation(s.Allocation, requestNames(&now.Spec.Devices), allocation)...)
	case !equality.Semantic.DeepEqual(s.Allocation, old.Status.Allocation):
		errs = append(errs, field.Invalid(allocation, nil, "field cannot be modified once set"))
	}
	if len(s.ReservedFor) <= resourcev1.ResourceClaimReservedForMaxSize {
		errs = append(errs, distinct(s.ReservedFor, reserved, func(r resourcev1.ResourceClaimConsumerReference) string { return string(r.UID) })...)
	}
	return append(errs, distinct(s.Devices, at.Child("devices"), ofStatus)...)
}

func claimAllocation(a *resourcev1.AllocationResult, names []string, at *field.Path) field.ErrorList {
	devices := at.Child("devices")
	errs := atMost(a.Devices.Results, resourcev1.AllocationResultsMaxSize, devices.Child("results"), func(r *resourcev1.DeviceRequestAllocationResult, at *field.Path) field.ErrorList {
		errs := requestRef(r.Request, names, at.Child("request"))
		errs = append(errs, labelName(r.Device, at.Child("device"))...)
		errs = append(errs, bindingConditions(r.BindingConditions, r.BindingFailureConditions, at)...)
		errs = append(errs, deviceTolerations(r.Tolerations, at.Child("tolerations"))...)
		errs = append(errs, coveredDriver(r.Driver, at.Child("driver"))...)
		errs = append(errs, poolName(r.Pool, true, at.Child("pool"))...)
		if r.ShareID != nil {
			errs = append(errs, shareID(string(*r.ShareID), at.Child("shareID"))...)
		}
		return errs
	})
	errs = append(errs, atMost(a.Devices.Config, 2*resourcev1.DeviceConfigMaxSize, devices.Child("config"), func(c *resourcev1.DeviceAllocationConfiguration, at *field.Path) field.ErrorList {
		errs := requestRefs(c.Requests, names, at.Child("requests"))
		errs = append(errs, deviceConfig(&c.DeviceConfiguration, at)...)
		return append(errs, oneOf(at.Child("source"), c.Source, resourcev1.AllocationConfigSourceClaim, resourcev1.AllocationConfigSourceClass)...)
	})...)
	if a.NodeSelector != nil {
		errs = append(errs, podspec.NodeSelector(a.NodeSelector, at.Child("nodeSelector"))...)
	}
	return errs
}

func deviceStatus(s *resourcev1.AllocatedDeviceStatus, known sets.Set[allocated], at *field.Path) field.ErrorList {
	errs := driverName(s.Driver, at.Child("driver"))
	errs = append(errs, poolName(s.Pool, false, at.Child("pool"))...)
	errs = append(errs, labelName(s.Device, at.Child("device"))...)
	if id := ofStatus(*s); !known.Has(id) {
		errs = append(errs, field.Invalid(at, id.String(), "must be an allocated device in the claim"))
	}
	conditions := at.Child("conditions")
	if n := len(s.Conditions); n > maxDeviceConditions {
		errs = append(errs, field.TooMany(conditions, n, maxDeviceConditions))
	}
	errs = append(errs, metavalidation.ValidateConditions(s.Conditions, conditions)...)
	if s.Data != nil && len(s.Data.Raw) > 0 {
		errs = append(errs, rawObject(s.Data, maxDeviceData, at.Child("data"))...)
	}
	if s.NetworkData != nil {
		errs = append(errs, networkData(s.NetworkData, at.Child("networkData"))...)
	}
	if s.ShareID != nil {
		errs = append(errs, shareID(*s.ShareID, at.Child("shareID"))...)
	}
	return errs
}

func networkData(n *resourcev1.NetworkDeviceData, at *field.Path) (errs field.ErrorList) {
	ips := at.Child("ips")
	if len(n.IPs) <= maxDeviceIPs {
		for i, ip := range n.IPs {
			errs = append(errs, validation.IsValidInterfaceAddress(ips.Index(i), ip)...)
		}
	}
	if len(n.InterfaceName) > maxInterfaceName {
		errs = append(errs, field.TooLong(at.Child("interfaceName"), "", maxInterfaceName))
	}
	if len(n.IPs) > maxDeviceIPs {
		errs = append(errs, field.TooMany(ips, len(n.IPs), maxDeviceIPs))
	} else {
		errs = append(errs, distinct(n.IPs, ips, self)...)
	}
	if len(n.HardwareAddress) > maxHardwareAddress {
		errs = append(errs, field.TooLong(at.Child("hardwareAddress"), "", maxHardwareAddress))
	}
	return errs
}
