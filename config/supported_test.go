package config

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestSupportedFieldsExist: a misspelt path in the table would refuse the field it was meant for.
func TestSupportedFieldsExist(t *testing.T) {
	for name, k := range kinds() {
		paths := slices.Sorted(maps.Keys(k.support.verdicts))
		paths = append(paths, slices.Sorted(maps.Keys(k.support.values))...)
		for _, path := range paths {
			s := k.schema
			for _, field := range strings.Split(path, ".") {
				for s.shape() == shapeList || s.shape() == shapeMap {
					s = s.elem()
				}
				next, spelling, ok := s.field(field)
				if !ok || spelling != field {
					t.Errorf("%s has no field %q (of %s)", name, field, path)
					break
				}
				s = next
			}
		}
		for path := range k.support.values {
			if k.support.of(path) != supported {
				t.Errorf("%s: values of %s are limited, but the field is not supported", name, path)
			}
		}
	}
}
