package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"isthmus.dev/isthmus/api/admin"
)

// decodeObject is a stored object as it was applied, with its status and, where it is known, the version that tells apply whether
// it was changed meanwhile. Of a deleted one only the name may be left.
func decodeObject(o *admin.Object) (map[string]any, error) {
	object := map[string]any{}
	if len(o.GetJson()) == 0 {
		metadata := map[string]any{"namespace": o.GetNamespace(), "name": o.GetName()}
		return map[string]any{"apiVersion": o.GetApiVersion(), "kind": o.GetKind(), "metadata": metadata}, nil
	}
	if err := decodeJSON(o.GetJson(), &object); err != nil {
		return nil, fmt.Errorf("decode %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
	}
	if len(o.GetStatus()) > 0 {
		var status any
		if err := decodeJSON(o.GetStatus(), &status); err != nil {
			return nil, fmt.Errorf("decode the status of %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
		}
		object["status"] = status
	}
	if metadata, ok := object["metadata"].(map[string]any); ok && o.GetVersion() > 0 {
		metadata["resourceVersion"] = strconv.FormatInt(o.GetVersion(), 10)
	}
	return object, nil
}

// decodeJSON decodes and keeps numbers as they were written.
func decodeJSON(raw []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	return decoder.Decode(into)
}

// resourceName is what -o name prints: "virtualservice.networking.istio.io/reviews".
func resourceName(apiVersion, kind, name string) string {
	group, _, found := strings.Cut(apiVersion, "/")
	if !found {
		return strings.ToLower(kind) + "/" + name // the core group has no name
	}
	return strings.ToLower(kind) + "." + group + "/" + name
}

// field walks down maps; nil where there is nothing.
func field(value any, path ...string) any {
	for _, key := range path {
		m, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = m[key]
	}
	return value
}

func text(value any, path ...string) string {
	switch v := field(value, path...).(type) {
	case nil, map[string]any, []any:
		return ""
	default:
		return fmt.Sprint(v)
	}
}

func list(value any, path ...string) []any {
	items, _ := field(value, path...).([]any)
	return items
}

func texts(values []any) string {
	var all []string
	for _, value := range values {
		all = append(all, text(value))
	}
	return strings.Join(all, ",")
}

// pairs prints a map of texts as a selector: "app=reviews,version=v1".
func pairs(value any, path ...string) string {
	m, _ := field(value, path...).(map[string]any)
	var all []string
	for key, value := range m {
		all = append(all, key+"="+text(value))
	}
	sort.Strings(all)
	return strings.Join(all, ",")
}
