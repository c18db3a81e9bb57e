package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is one named xDS resource. Body is shared and must not be changed.
type Resource struct {
	Name string
	// Version is the hex of a hash of the content: equal content has equal versions, over restarts and replicas too,
	// so that a client that reconnects elsewhere is still current.
	Version string
	Body    *anypb.Any
	wire    []byte // see Wire; nil: not encoded yet
}

// New packs a message as a resource. The error is the encoder's: invalid UTF-8 in a string field.
func New(name string, body proto.Message) (Resource, error) {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return Resource{}, fmt.Errorf("encode resource %q: %w", name, err)
	}
	return Encoded(name, proto.MessageName(body), value), nil
}

// Encoded packs a message of that type that is encoded already.
func Encoded(name string, message protoreflect.FullName, value []byte) Resource {
	sum := sha256.Sum256(value)
	r := Resource{
		Name:    name,
		Version: hex.EncodeToString(sum[:12]),
		Body:    &anypb.Any{TypeUrl: "type.googleapis.com/" + string(message), Value: value},
	}
	r.wire, r.Body.Value = r.encode()
	return r
}

// Fields of the messages that [Resource.Wire] is made of.
const (
	fieldResources = 2 // DeltaDiscoveryResponse.resources
	fieldVersion   = 1 // Resource.version
	fieldResource  = 2 // Resource.resource
	fieldName      = 3 // Resource.name
	fieldTypeURL   = 1 // Any.type_url
	fieldValue     = 2 // Any.value
)

// Wire is the resource as an element of DeltaDiscoveryResponse.resources, tag and length included: a response is its other
// fields and the Wire of its resources, one behind the other (https://protobuf.dev/programming-guides/encoding). What New
// made is encoded once, for all clients. It must not be changed.
func (r *Resource) Wire() []byte {
	if r.wire != nil {
		return r.wire
	}
	wire, _ := r.encode()
	return wire
}

// encode gives Wire, and in it the value of the body.
func (r *Resource) encode() (wire, value []byte) {
	body, inner := r.sizes()
	wire = make([]byte, 0, protowire.SizeTag(fieldResources)+protowire.SizeBytes(inner))
	wire = protowire.AppendTag(wire, fieldResources, protowire.BytesType)
	wire = protowire.AppendVarint(wire, uint64(inner))
	wire = appendField(wire, fieldVersion, r.Version)
	wire = protowire.AppendTag(wire, fieldResource, protowire.BytesType)
	wire = protowire.AppendVarint(wire, uint64(body))
	wire = appendField(wire, fieldTypeURL, r.Body.GetTypeUrl())
	wire = appendField(wire, fieldValue, r.Body.GetValue())
	value = wire[len(wire)-len(r.Body.GetValue()) : len(wire) : len(wire)]
	return appendField(wire, fieldName, r.Name), value
}

// sizes are those of the body and of the whole message, in bytes.
func (r *Resource) sizes() (body, inner int) {
	body = sizeField(fieldTypeURL, len(r.Body.GetTypeUrl())) + sizeField(fieldValue, len(r.Body.GetValue()))
	inner = sizeField(fieldVersion, len(r.Version)) + protowire.SizeTag(fieldResource) + protowire.SizeBytes(body) + sizeField(fieldName, len(r.Name))
	return body, inner
}

// size is the length of Wire, in bytes.
func (r *Resource) size() int {
	if r.wire != nil {
		return len(r.wire)
	}
	_, inner := r.sizes()
	return protowire.SizeTag(fieldResources) + protowire.SizeBytes(inner)
}

// sizeField and appendField leave an empty field out, as proto3 does.
func sizeField(number protowire.Number, n int) int {
	if n == 0 {
		return 0
	}
	return protowire.SizeTag(number) + protowire.SizeBytes(n)
}

func appendField[T string | []byte](b []byte, number protowire.Number, value T) []byte {
	if len(value) == 0 {
		return b
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(value)))
	return append(b, value...)
}
