package config

import (
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// shape is what kind of value a field has.
type shape int

const (
	shapeObject shape = iota
	shapeList
	shapeMap
	shapeString
	shapeBool
	shapeInt
	shapeNumber
	shapeDuration
	shapeIntOrString
	shapeAny // a scalar or a structure that only the API knows
)

func (s shape) String() string {
	return [...]string{"a mapping", "a list", "a mapping", "a string", "true or false", "a whole number", "a number",
		"a duration such as 1.5s", "a whole number or a name", "a value"}[s]
}

// schema is the type of a value as the API has it.
type schema interface {
	shape() shape
	// fields are the names of an object's fields.
	fields() []string
	// field gives the type of one; name is its JSON name whatever spelling was given.
	field(spelling string) (s schema, name string, ok bool)
	// elem is the type of a list's or a map's values.
	elem() schema
	// values are the legal strings of an enumeration; none means any.
	values() []string
}

// protoSchema is a message or field of istio.io/api.
type protoSchema struct {
	message protoreflect.MessageDescriptor // a message
	f       protoreflect.FieldDescriptor   // or a field of one
	single  bool                           // one element of the repeated f
}

func (p protoSchema) shape() shape {
	if p.f == nil {
		return messageShape(p.message)
	}
	switch {
	case p.f.IsMap() && !p.single:
		return shapeMap
	case p.f.IsList() && !p.single:
		return shapeList
	}
	switch p.f.Kind() {
	case protoreflect.StringKind, protoreflect.EnumKind, protoreflect.BytesKind:
		return shapeString
	case protoreflect.BoolKind:
		return shapeBool
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return shapeNumber
	case protoreflect.MessageKind:
		return messageShape(p.f.Message())
	}
	return shapeInt
}

func messageShape(m protoreflect.MessageDescriptor) shape {
	switch m.FullName() {
	case "google.protobuf.Duration":
		return shapeDuration
	case "google.protobuf.BoolValue":
		return shapeBool
	case "google.protobuf.UInt32Value", "google.protobuf.Int32Value", "google.protobuf.Int64Value", "google.protobuf.UInt64Value":
		return shapeInt
	case "google.protobuf.DoubleValue", "google.protobuf.FloatValue":
		return shapeNumber
	case "google.protobuf.StringValue":
		return shapeString
	case "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.Any":
		return shapeAny
	}
	return shapeObject
}

func (p protoSchema) descriptor() protoreflect.MessageDescriptor {
	if p.f != nil {
		return p.f.Message()
	}
	return p.message
}

func (p protoSchema) fields() []string {
	var out []string
	fields := p.descriptor().Fields()
	for i := range fields.Len() {
		out = append(out, fields.Get(i).JSONName())
	}
	return out
}

func (p protoSchema) field(spelling string) (schema, string, bool) {
	fields := p.descriptor().Fields()
	f := fields.ByJSONName(spelling)
	if f == nil {
		f = fields.ByName(protoreflect.Name(spelling))
	}
	if f == nil {
		return nil, "", false
	}
	return protoSchema{f: f}, f.JSONName(), true
}

func (p protoSchema) elem() schema {
	if p.f.IsMap() {
		return protoSchema{f: p.f.MapValue(), single: true}
	}
	return protoSchema{f: p.f, single: true}
}

func (p protoSchema) values() []string {
	if p.f == nil || p.f.Kind() != protoreflect.EnumKind {
		return nil
	}
	var out []string
	values := p.f.Enum().Values()
	for i := range values.Len() {
		out = append(out, string(values.Get(i).Name()))
	}
	return out
}

// goSchema is a Go type of the Kubernetes API, by its json tags.
type goSchema struct{ t reflect.Type }

func (g goSchema) shape() shape {
	switch g.t {
	case reflect.TypeFor[intstr.IntOrString]():
		return shapeIntOrString
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.FieldsV1]():
		return shapeAny
	}
	switch g.t.Kind() {
	case reflect.Struct:
		return shapeObject
	case reflect.Slice:
		if g.t.Elem().Kind() == reflect.Uint8 {
			return shapeString
		}
		return shapeList
	case reflect.Map:
		return shapeMap
	case reflect.String:
		return shapeString
	case reflect.Bool:
		return shapeBool
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32, reflect.Uint64:
		return shapeInt
	case reflect.Float64:
		return shapeNumber
	}
	return shapeAny
}

func (g goSchema) each(fn func(name string, t reflect.Type) bool) {
	for i := range g.t.NumField() {
		f := g.t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			goSchema{f.Type}.each(fn)
			continue
		}
		if name != "" && name != "-" && !fn(name, f.Type) {
			return
		}
	}
}

func (g goSchema) fields() []string {
	var out []string
	g.each(func(name string, _ reflect.Type) bool { out = append(out, name); return true })
	slices.Sort(out)
	return out
}

func (g goSchema) field(spelling string) (schema, string, bool) {
	var found reflect.Type
	g.each(func(name string, t reflect.Type) bool {
		if name == spelling {
			found = t
		}
		return found == nil
	})
	if found == nil {
		return nil, "", false
	}
	return goSchema{pointee(found)}, spelling, true
}

func (g goSchema) elem() schema     { return goSchema{pointee(g.t.Elem())} }
func (g goSchema) values() []string { return nil }

func pointee(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// objectSchema is an object of the Kubernetes kind: its metadata, and a spec of another origin.
type objectSchema struct {
	goSchema
	spec schema
}

func (o objectSchema) fields() []string {
	return []string{"apiVersion", "kind", "metadata", "spec", "status"}
}

func (o objectSchema) field(name string) (schema, string, bool) {
	switch name {
	case "spec":
		return o.spec, name, o.spec != nil
	case "status":
		return goSchema{reflect.TypeFor[any]()}, name, true
	}
	return o.goSchema.field(name)
}

func (objectSchema) shape() shape { return shapeObject }
