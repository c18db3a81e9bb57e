package config

import "strings"

// field is one line of a kind's table: the one place, beside the lowering, in which a field of an API is written. What the
// API has and the table does not is refused as not supported yet. The pages of docs/reference are made of the tables.
type field struct {
	// path is without indexes and map keys; it implies those it goes through. One that ends in ".*" is owned by a server, or
	// free text: what is below is not looked at.
	path string
	// values limits the field to those that mean what happens anyway.
	values []string
	// matches says that the field is a StringMatch: exact, prefix or regex.
	matches bool
	// standard is the API's default, ours where it is another.
	standard, ours string
	// producer says whether the field counts in a rule that came along with an export.
	producer producerVerdict
	note     string // for people
	test     string // what shows that the field does this: a package and a test or a case in it
}

// producerVerdict is what becomes of a field in a rule of a producer.
type producerVerdict int

const (
	quarantine producerVerdict = iota // the rule is not used: without the field it would mean another thing
	allow                             // it counts, within bounds
	leave                             // the field is left out: where a consumer sends its requests is its own affair
)

// verdict is what is done with a field the API has.
type verdict int

const (
	notSupported verdict = iota // an error that says so
	supported                   // it has an effect, or its fields are judged one by one
	opaque                      // owned by a server, or free text: not looked at
)

// support is a table as the walk over a document asks it.
type support struct {
	table    []field
	verdicts map[string]verdict
	values   map[string][]string
}

func (s support) of(path string) verdict { return s.verdicts[path] }

// stringMatchFields are those of Istio's StringMatch.
var stringMatchFields = []string{"exact", "prefix", "regex"}

// fieldTable makes the table of a kind out of parts; metadata is the same for every kind.
func fieldTable(parts ...[]field) support {
	s := support{verdicts: map[string]verdict{}, values: map[string][]string{}}
	for _, part := range parts {
		s.table = append(s.table, part...)
	}
	add := func(path string) {
		v := supported
		if strings.HasSuffix(path, ".*") {
			path, v = strings.TrimSuffix(path, ".*"), opaque
		}
		s.verdicts[path] = v
		for i := strings.LastIndexByte(path, '.'); i > 0; i = strings.LastIndexByte(path[:i], '.') {
			if _, ok := s.verdicts[path[:i]]; !ok {
				s.verdicts[path[:i]] = supported
			}
		}
	}
	for _, path := range metadataFields {
		add(path)
	}
	for _, f := range s.table {
		add(f.path)
		if f.values != nil {
			s.values[f.path] = f.values
		}
		if f.matches {
			for _, kind := range stringMatchFields {
				add(f.path + "." + kind)
			}
		}
	}
	return s
}

// beneath repeats a part of a table under several paths.
func beneath(prefixes []string, part []field) []field {
	var out []field
	for _, prefix := range prefixes {
		for _, f := range part {
			f.path = prefix + "." + f.path
			out = append(out, f)
		}
	}
	return out
}

// forProducers is a table with nothing in it but what a producer may write.
func (s support) forProducers() support {
	var allowed []field
	for _, f := range s.table {
		if f.producer != quarantine {
			allowed = append(allowed, f)
		}
	}
	return fieldTable(allowed)
}
