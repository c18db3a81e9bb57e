package config

import (
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	istio "istio.io/api/networking/v1alpha3"

	"isthmus.dev/isthmus/rule"
)

// faultFilter is Envoy's HTTP filter that delays and aborts
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/fault_filter).
const faultFilter = "envoy.filters.http.fault"

// faultFields are the fields of a VirtualService's fault injection. A producer has none of them: no cluster fails another's
// calls on purpose.
var faultFields = []field{
	{path: "spec.http.fault.delay.fixedDelay", test: "translate TestFault"},
	{path: "spec.http.fault.delay.percentage.value", standard: "0", test: "config TestFaults"},
	{path: "spec.http.fault.delay.percent", standard: "0", note: "percentage wins", test: "config TestFaults"},
	{path: "spec.http.fault.abort.httpStatus", test: "translate TestFault"},
	{path: "spec.http.fault.abort.grpcStatus", note: "a name of google.rpc.Code", test: "config TestFaults"},
	{path: "spec.http.fault.abort.percentage.value", standard: "0", test: "config TestFaults"},
}

// fault is the injection of a rule; nil where it asks for none.
func (m *maker) fault(f *istio.HTTPFaultInjection, at []any) *rule.Filter {
	if f == nil {
		return nil
	}
	steps := func(s ...any) []any { return append(slices.Clone(at), s...) }
	out := &faultv3.HTTPFault{}
	if d := f.Delay; d != nil {
		//lint:ignore SA1019 it is what people wrote before percentage
		percent := float64(d.Percent)
		if d.Percentage != nil {
			percent = d.Percentage.Value
		}
		wait := m.duration(d.GetFixedDelay(), steps("delay", "fixedDelay")...)
		if wait == 0 {
			m.invalid(steps("delay"), "a delay needs a fixedDelay")("for example fixedDelay: 5s")
		}
		out.Delay = &faultcommonv3.FaultDelay{
			FaultDelaySecifier: &faultcommonv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(wait)}, Percentage: m.partOf(percent, steps("delay", "percentage")),
		}
	}
	if a := f.Abort; a != nil {
		out.Abort = &faultv3.FaultAbort{Percentage: m.partOf(a.GetPercentage().GetValue(), steps("abort", "percentage"))}
		switch e := a.ErrorType.(type) {
		case *istio.HTTPFaultInjection_Abort_HttpStatus:
			if e.HttpStatus < 200 || e.HttpStatus > 599 {
				m.invalid(steps("abort", "httpStatus"), "status %d is not in 200..599", e.HttpStatus)
			}
			out.Abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: uint32(max(e.HttpStatus, 0))}
		case *istio.HTTPFaultInjection_Abort_GrpcStatus:
			code, ok := grpcCodes[e.GrpcStatus]
			if !ok {
				m.invalid(steps("abort", "grpcStatus"), "%q is no status of gRPC", e.GrpcStatus)("names are those of google.rpc.Code, for example UNAVAILABLE")
			}
			out.Abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: code}
		default:
			m.invalid(steps("abort"), "an abort needs an httpStatus or a grpcStatus")("for example httpStatus: 503")
		}
	}
	if out.Delay == nil && out.Abort == nil {
		m.invalid(at, "a fault needs a delay or an abort")
		return nil
	}
	return &rule.Filter{
		Place: rule.FaultPlace,
		HTTP:  idleFault,
		Route: rule.Encode(&routev3.Route{TypedPerFilterConfig: map[string]*anypb.Any{faultFilter: packed(out)}}),
	}
}

// idleFault injects nothing.
var idleFault = &hcmv3.HttpFilter{Name: faultFilter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&faultv3.HTTPFault{})}}

// packed encodes a message of ours deterministically.
func packed(msg proto.Message) *anypb.Any {
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(msg.ProtoReflect().Descriptor().FullName()), Value: rule.Encode(msg)}
}

// grpcCodes are the names of google.rpc.Code.
var grpcCodes = map[string]uint32{
	"OK": 0, "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5, "ALREADY_EXISTS": 6, "PERMISSION_DENIED": 7,
	"RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "ABORTED": 10, "OUT_OF_RANGE": 11, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14,
	"DATA_LOSS": 15, "UNAUTHENTICATED": 16,
}
