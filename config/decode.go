package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	istio "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"isthmus.dev/isthmus/internal/nearest"
	"isthmus.dev/isthmus/mesh"
	"isthmus.dev/isthmus/rule"
)

// kind is a kind with what is known of its fields.
type kind struct {
	Kind
	schema  schema
	support support
	// lower gives what a document that passed the walk means; nil for one that configures nothing. It reports what is wrong
	// with the values.
	lower func(m *maker) any
}

// maker makes one object.
type maker struct {
	item *item
	// whole is the whole object as JSON, with its namespace.
	whole []byte
	meta  metav1.ObjectMeta
	root  *yaml.Node
	r     *report
	bad   bool
	// producer is set for a rule that came along with an export; patterns is what its regular expressions come to.
	producer *producer
	patterns int
}

// kinds are those of Kinds, by name. The map is made once and never changed.
var kinds = sync.OnceValue(func() map[string]kind {
	meta := goSchema{reflect.TypeFor[metav1.PartialObjectMetadata]()}
	spec := func(m proto.Message) schema {
		return objectSchema{goSchema: meta, spec: protoSchema{message: m.ProtoReflect().Descriptor()}}
	}
	fields := map[string]kind{
		KindService:         {schema: goSchema{reflect.TypeFor[corev1.Service]()}, support: serviceFields, lower: lowerService},
		KindServiceExport:   {schema: goSchema{reflect.TypeFor[mcsv1.ServiceExport]()}, support: exportFields, lower: lowerExport},
		KindWorkloadEntry:   {schema: spec(&istio.WorkloadEntry{}), support: workloadEntryFields, lower: lowerWorkload},
		KindVirtualService:  {schema: spec(&istio.VirtualService{}), support: virtualServiceFields, lower: message(lowerVirtualService)},
		KindDestinationRule: {schema: spec(&istio.DestinationRule{}), support: destinationRuleFields, lower: message(lowerDestinationRule)},
	}
	all := map[string]kind{}
	for _, k := range Kinds() {
		known := fields[k.Name]
		known.Kind = k
		all[k.Name] = known
	}
	return all
})

// message makes a lowering of the spec alone.
func message[M any, P interface {
	*M
	proto.Message
}](lower func(*maker, P) *rule.Object) func(*maker) any {
	return func(m *maker) any {
		spec := P(new(M))
		if !m.message(spec) || !m.producer.restrict(m, spec) {
			return nil
		}
		if o := lower(m, spec); o != nil {
			return o
		}
		return nil
	}
}

// laterKinds are known and not supported yet, by group.
var laterKinds = map[string][]string{
	"networking.istio.io":       {"Gateway", "ServiceEntry", "Sidecar", "EnvoyFilter", "WorkloadGroup", "ProxyConfig"},
	"security.istio.io":         {"PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"},
	"telemetry.istio.io":        {"Telemetry"},
	"extensions.istio.io":       {"WasmPlugin"},
	"gateway.networking.k8s.io": {"Gateway", "GatewayClass", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "ReferenceGrant", "BackendTLSPolicy"},
	"multicluster.x-k8s.io":     {"ServiceImport"},
}

// decode checks one document and makes its object; nil if it has an error.
func decode(doc document, defaultNamespace string, r *report) *item {
	return decodeBy(doc, defaultNamespace, nil, r)
}

// decodeBy is decode of a rule that a producer wrote, or of any object for nil.
func decodeBy(doc document, defaultNamespace string, by *producer, r *report) *item {
	r.begin(doc.file)
	apiVersion, kindName := text(doc.root, "apiVersion"), text(doc.root, "kind")
	name, namespace := text(child(doc.root, "metadata"), "name"), text(child(doc.root, "metadata"), "namespace")
	if namespace == "" {
		namespace = defaultNamespace
	}
	it := &item{Object: Object{
		APIVersion: apiVersion, Kind: kindName, Namespace: namespace, Name: name, File: doc.file, Line: doc.root.Line,
		ResourceVersion: text(child(doc.root, "metadata"), "resourceVersion"),
	}}
	if it.ResourceVersion == "0" || text(child(doc.root, "metadata"), "uid") != "" {
		it.ResourceVersion = "" // "0" is Kubernetes' word for any; who gives uids is another server, whose versions are not ours
	}
	before := len(r.findings)
	k, ok := findKind(doc, it.Object, r)
	if !ok {
		return nil
	}
	m := &maker{item: it, root: doc.root, r: r, producer: by}
	if !m.checkName() {
		return nil
	}
	w := &walker{r: r, object: it.ID().String(), support: k.support}
	if by != nil {
		w.support = k.support.forProducers()
	}
	w.value(doc.root, k.schema, "", "")
	if HasError(r.findings[before:]) || !m.encode() {
		return nil
	}
	value := k.lower(m)
	if m.bad || HasError(r.findings[before:]) {
		return nil
	}
	it.JSON, it.Value = m.whole, value
	if by != nil {
		by.patterns += m.patterns
	}
	return it
}

// findKind looks up the kind of a document. One that is somebody else's is left out with a warning.
func findKind(doc document, o Object, r *report) (kind, bool) {
	report := func(code, path, format string, args ...any) func(string, ...any) {
		n := doc.root
		if c := child(doc.root, path); c != nil {
			n = c
		}
		return r.at(n, o.ID().String()).add(code, "", path, format, args...)
	}
	if o.APIVersion == "" || o.Kind == "" {
		report(mesh.CodeUnknownKind, "kind", "the document has no apiVersion or no kind")("every document starts with both, for example apiVersion: v1, kind: Service")
		return kind{}, false
	}
	group, version, grouped := strings.Cut(o.APIVersion, "/")
	if !grouped {
		group, version = "", group
	}
	all := kinds()
	k, ok := all[o.Kind]
	switch {
	case ok && k.Group == group && slices.Contains(k.Versions, version):
		return k, true
	case ok && k.Group == group:
		report(mesh.CodeUnknownKind, "apiVersion", "kind %s has no version %q", o.Kind, version)("use one of %s", strings.Join(k.Versions, ", "))
	case !ok && othersKind(group, o.Kind):
		r.at(doc.root, o.ID().String()).level(mesh.LevelWarning, mesh.CodeSkipped, "", "kind", "kind %s of %s is not configuration of a mesh: it was left out", o.Kind, o.APIVersion)(
			"nothing has to be changed; Kubernetes takes it by kubectl apply")
	case slices.Contains(laterKinds[group], o.Kind):
		report(mesh.CodeNotSupported, "kind", "kind %s of %s is not supported yet", o.Kind, group)("leave the object out: it would have no effect")
	case ok:
		report(mesh.CodeUnknownKind, "apiVersion", "kind %s is not of group %q", o.Kind, group)("write apiVersion: %s", k.APIVersion())
	default:
		fix := report(mesh.CodeUnknownKind, "kind", "there is no kind %s in %q", o.Kind, o.APIVersion)
		var names []string
		for n := range all {
			names = append(names, n)
		}
		slices.Sort(names)
		if like := nearest.Of(o.Kind, names, 1); len(like) > 0 {
			fix("did you mean %s?", like[0])
		} else {
			fix("kinds: %s", strings.Join(names, ", "))
		}
	}
	return kind{}, false
}

// encode makes the JSON forms of the document.
func (m *maker) encode() bool {
	v, err := toJSON(m.root)
	if err != nil {
		m.problem(m.root, "", "%v", err)
		return false
	}
	object := v.(map[string]any)
	meta, _ := object["metadata"].(map[string]any)
	meta["namespace"] = m.item.Namespace
	delete(object, "status")
	for _, field := range serverFields {
		delete(meta, field)
	}
	whole, err := json.Marshal(object)
	if err != nil || len(whole) > MaxObject {
		m.problem(m.root, "", "the object has %d bytes as JSON, %d at most", len(whole), MaxObject)
		return false
	}
	m.whole = whole
	raw, err := json.Marshal(meta)
	if err == nil {
		err = json.Unmarshal(raw, &m.meta)
	}
	if err != nil {
		m.problem(m.root, "metadata", "%v", err)
		return false
	}
	return true
}

// message decodes the spec into a message of istio.io/api.
func (m *maker) message(into proto.Message) bool {
	spec := child(m.root, "spec")
	if spec == nil {
		m.problem(m.root, "spec", "the object has no spec")
		return false
	}
	v, err := toJSON(secondsFor(protoSchema{message: into.ProtoReflect().Descriptor()}, spec))
	var raw []byte
	if err == nil {
		raw, err = json.Marshal(v)
	}
	if err == nil {
		err = protojson.Unmarshal(raw, into)
	}
	if err != nil {
		m.problem(spec, "spec", "%v", strings.TrimSpace(strings.ReplaceAll(strings.TrimPrefix(err.Error(), "proto:"), "\u00a0", " ")))
		return false
	}
	return true
}

// secondsFor copies a spec with every duration in the one form protojson reads.
func secondsFor(s schema, n *yaml.Node) *yaml.Node {
	c := *n
	c.Content = slices.Clone(n.Content)
	switch {
	case s.shape() == shapeDuration && n.Kind == yaml.ScalarNode && n.Tag == "!!str":
		if d, err := time.ParseDuration(n.Value); err == nil {
			c.Value = fmt.Sprintf("%d.%09ds", int64(d/time.Second), int64(d%time.Second))
			if d < 0 {
				c.Value = fmt.Sprintf("-%d.%09ds", int64(-d/time.Second), int64(-d%time.Second))
			}
		}
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			switch s.shape() {
			case shapeObject:
				if f, _, ok := s.field(n.Content[i].Value); ok {
					c.Content[i+1] = secondsFor(f, n.Content[i+1])
				}
			case shapeMap:
				c.Content[i+1] = secondsFor(s.elem(), n.Content[i+1])
			}
		}
	case n.Kind == yaml.SequenceNode && s.shape() == shapeList:
		for i := range n.Content {
			c.Content[i] = secondsFor(s.elem(), n.Content[i])
		}
	}
	return &c
}

// checkName checks what every object's name has to be.
func (m *maker) checkName() bool {
	meta := child(m.root, "metadata")
	if meta == nil || meta.Kind != yaml.MappingNode {
		m.problem(m.root, "metadata", "the object has no metadata with a name")
	} else if !mesh.IsSubdomain(m.item.Name) {
		m.problem(meta, "metadata.name", "name %q is not a DNS-1123 name (a-z, 0-9, '-' and '.')", m.item.Name)
	} else if !mesh.IsLabel(m.item.Namespace) {
		m.problem(meta, "metadata.namespace", "namespace %q is not a DNS-1123 label", m.item.Namespace)
	}
	return !m.bad
}

// problem reports an invalid value at a node, or at the object's first line where n is nil.
func (m *maker) problem(n *yaml.Node, path, format string, args ...any) func(string, ...any) {
	m.bad = true
	if n == nil {
		n = m.root
	}
	return m.r.at(n, m.item.ID().String()).add(mesh.CodeInvalid, "", path, format, args...)
}

// invalid reports a value by its path from the root: field names, and indexes as numbers.
func (m *maker) invalid(steps []any, format string, args ...any) func(string, ...any) {
	n, path := m.locate(steps)
	return m.problem(n, path, format, args...)
}

// unsupported reports, by its path, a value that is right and that this version does not act on.
func (m *maker) unsupported(steps []any, format string, args ...any) func(string, ...any) {
	m.bad = true
	n, path := m.locate(steps)
	return m.r.at(n, m.item.ID().String()).add(mesh.CodeNotSupported, "", path, format, args...)
}

// info says something about a value that is right.
func (m *maker) info(code string, steps []any, format string, args ...any) func(string, ...any) {
	n, path := m.locate(steps)
	return m.r.at(n, m.item.ID().String()).level(mesh.LevelInfo, code, "", path, format, args...)
}

// origin says where a value is written, by its path from the root; none is the whole object.
func (m *maker) origin(steps ...any) rule.Origin {
	n, path := m.locate(steps)
	o := rule.Origin{Object: m.item.ID(), Path: path, File: m.item.File}
	if o.File != "" {
		o.Line = n.Line
	}
	return o
}

// path of a value, as findings have it.
func (m *maker) path(steps ...any) string {
	_, path := m.locate(steps)
	return path
}

// locate finds a value by its path from the root, or the nearest that encloses it.
func (m *maker) locate(steps []any) (n *yaml.Node, path string) {
	n = m.root
	for _, step := range steps {
		switch s := step.(type) {
		case string:
			path = join(path, s)
			if c := childOf(n, s); c != nil {
				n = c
			}
		case int:
			path = fmt.Sprintf("%s[%d]", path, s)
			if n.Kind == yaml.SequenceNode && s < len(n.Content) {
				n = n.Content[s]
			}
		}
	}
	return n, path
}

// childOf finds a field under either of its spellings.
func childOf(n *yaml.Node, jsonName string) *yaml.Node {
	if c := child(n, jsonName); c != nil {
		return c
	}
	var snake strings.Builder
	for _, r := range jsonName {
		if r >= 'A' && r <= 'Z' {
			snake.WriteByte('_')
			r += 'a' - 'A'
		}
		snake.WriteRune(r)
	}
	return child(n, snake.String())
}

func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func text(n *yaml.Node, key string) string {
	if c := child(n, key); c != nil && c.Kind == yaml.ScalarNode && c.Tag != "!!null" {
		return c.Value
	}
	return ""
}
