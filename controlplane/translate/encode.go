package translate

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"isthmus.dev/isthmus/xds"
)

// resource encodes a resource. Invalid UTF-8, the only error, never reaches a snapshot.
func resource(name string, m proto.Message) xds.Resource {
	r, err := xds.New(name, m)
	if err != nil {
		panic(fmt.Sprintf("translate: %v", err))
	}
	return r
}

// pack encodes m deterministically. A message of ours that cannot be encoded is a broken invariant (invalid UTF-8
// never reaches a snapshot).
func pack(m proto.Message) *anypb.Any {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("encode %s: %v", m.ProtoReflect().Descriptor().FullName(), err))
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: value}
}

func duration(d time.Duration) *durationpb.Duration { return durationpb.New(d) }
func u32(v uint32) *wrapperspb.UInt32Value          { return wrapperspb.UInt32(v) }
func yes() *wrapperspb.BoolValue                    { return wrapperspb.Bool(true) }
func no() *wrapperspb.BoolValue                     { return wrapperspb.Bool(false) }

// ads says: over the stream this resource came on.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

func socketAddress(ip string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// metadata is one filter's metadata made of strings. Empty values are left out.
func metadata(filter string, pairs map[string]string) *corev3.Metadata {
	fields := map[string]*structpb.Value{}
	for k, v := range pairs {
		if v != "" {
			fields[k] = structpb.NewStringValue(v)
		}
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{filter: {Fields: fields}}}
}
