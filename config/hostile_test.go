package config

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"isthmus.dev/isthmus/mesh"
)

// good is an object that has to be read whatever stands before and behind it.
const good = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec: {ports: [{port: 80}]}\n"

// TestHostile: whatever one document is, it costs a bounded number of findings and bytes, and what stands before and behind it is
// read.
func TestHostile(t *testing.T) {
	vs := func(spec string) string {
		return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n" + spec
	}
	route := "  - {route: [{destination: {host: a}}]}\n"
	wrong := "  - {ruote: 1, rout: 2, timeut: 3, fault: {delay: 1}, route: [{destination: {hots: a}, wieght: x}]}\n"
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 12; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	for _, tc := range []struct {
		why, in string
		says    string // of some finding
		most    int    // findings
		bytes   uint64 // allocated
	}{
		{"aliases that multiply", bomb, "aliases (*name) repeat more than", 1, 32 << 20},
		{"an alias within itself", "a: &a [*a, *a]\n", "nested deeper", 1, 8 << 20},
		{"many aliases within themselves", "a: &a [" + strings.Repeat("*a, ", 1000) + "*a]\n", "nested deeper", 1, 8 << 20},
		{"deep", "a: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + "\n", "nested deeper", 1, 32 << 20},
		{"not YAML", "a: [}\n", "not YAML", 1, 1 << 20},
		{"an end that is missing", "a: \"\n" + strings.Repeat("x\n", 1000), "not YAML", 1, 8 << 20},
		{"10,000 routes", vs("  http:\n" + strings.Repeat(route, 10_000)), "10000 entries, 1024 at most", 1, 128 << 20},
		{"1,000 routes and all of them wrong", vs("  http:\n" + strings.Repeat(wrong, 1000)), "too much is wrong here", maxOfObject, 64 << 20},
		{"50,000 fields that are unknown", vs(manyFields(50_000)), "too much is wrong here", maxOfObject, 192 << 20},
		{"a field with a long name", vs("  ? " + strings.Repeat("x", 1<<20) + "\n  : 1\n"), "there is no field", 1, 64 << 20},
		{"a long value", vs("  exportTo: [" + strings.Repeat("x", 1<<20) + "]\n"), "ISM0102", 1, 64 << 20},
		{"an object that is too large", "apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {a: " + strings.Repeat("x", MaxObject) + "}}\nspec: {ports: [{port: 80}]}\n", "bytes as JSON", 1, 32 << 20},
		{"a list in a list in a list", strings.Repeat("{apiVersion: v1, kind: List, items: [", 20) + strings.Repeat("]}", 20) + "\n", "lists within lists", 1, 8 << 20},
		{"more values than a file may have", "a: [" + strings.Repeat("a,", maxNodes+10) + "a]\n", "more than 200000 values", 1, 192 << 20},
		{"an item with a key twice", "apiVersion: v1\nkind: List\nitems:\n- {a: 1, a: 2}\n- {kind: Pod, apiVersion: v1}\n", "key \"a\" appears twice", 2, 1 << 20},
		{"items that are aliases of the list", "apiVersion: v1\nkind: List\nitems: &a [*a, *a]\n", "nested deeper", 1, 1 << 20},
		{"items of which each multiplies by aliases", "apiVersion: v1\nkind: List\nitems:\n" + strings.Repeat("- {a: &a [x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b], d: &d [*c,*c,*c,*c,*c,*c,*c,*c], e: &e [*d,*d,*d,*d,*d,*d,*d,*d], f: [*e,*e,*e]}\n", 1000), "aliases (*name) repeat", MaxFindings, 256 << 20},
		{"a number that is long", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: " + strings.Repeat("9", 1<<20) + "}]}\n", "whole number", 1, 64 << 20},
		{"an exponent that is long", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 1e" + strings.Repeat("9", 1<<20) + "}]}\n", "whole number", 1, 64 << 20},
	} {
		in := strings.Replace(good, "NAME", "before", 1) + "---\n" + tc.in + "---\n" + strings.Replace(good, "NAME", "behind", 1)
		var objects []Object
		var findings []mesh.Finding
		bytes := allocated(func() { objects, findings = Decode([]File{{Name: "in.yaml", Data: []byte(in)}}, "") })
		t.Logf("%s: %d bytes in, %d findings, %d kB allocated", tc.why, len(in), len(findings), bytes>>10)
		text := string(render(findings))
		if len(objects) != 2 || objects[0].Name != "before" || objects[1].Name != "behind" {
			t.Errorf("%s: %d objects were read, want the one before and the one behind; findings %.500s", tc.why, len(objects), text)
		}
		if !strings.Contains(text, tc.says) || len(findings) > tc.most || !HasError(findings) || len(text) > 1500*len(findings) {
			t.Errorf("%s: %d findings of %d bytes, want %d at most, an error, and %q: %.500s", tc.why, len(findings), len(text), tc.most, tc.says, text)
		}
		if bytes > tc.bytes {
			t.Errorf("%s: %d bytes were allocated, want %d at most", tc.why, bytes, tc.bytes)
		}
		if want := strings.Count(in[:len(in)-len(good)], "\n"); len(objects) == 2 && (objects[1].Line < want || objects[1].Line > want+3) {
			t.Errorf("%s: the last object is in line %d, want about %d", tc.why, objects[1].Line, want)
		}
	}
}

func manyFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "  f%d: 1\n", i)
	}
	return b.String()
}

// allocated counts the bytes that do allocates: work that does not depend on the machine's speed.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestHostileFiles: a whole file beyond a bound is one clear finding, and other files are read.
func TestHostileFiles(t *testing.T) {
	for _, tc := range []struct {
		why, in, says string
		objects       int // of the file
		most          int // findings
		bytes         uint64
	}{
		{"5 MB", "a: " + strings.Repeat("x", 5<<20), "the file has more than 4194304 bytes", 0, 1, 1 << 20},
		{"10,000 documents", services(10_000), "more than 2000 documents", MaxDocuments, 1, 256 << 20},
		{"10,000 documents that are not YAML", strings.Repeat("---\n{\n", 10_000), "more findings are not shown", 0, MaxFindings, 256 << 20},
		{"10,000 documents that are wrong", strings.Repeat("---\nkind: A\napiVersion: v1\n", 10_000), "findings are not shown", 0, MaxFindings, 256 << 20},
		{"a list of 10,000", list(10_000), "more than 2000 documents, the items of lists among them", MaxDocuments, 1, 256 << 20},
		{"a list of 50,000 words", "apiVersion: v1\nkind: List\nitems: [" + strings.Repeat("a,", 50_000) + "a]", "findings are not shown", 0, MaxFindings, 64 << 20},
		{"two documents with more values than a file may have", strings.Repeat("---\na: ["+strings.Repeat("a,", maxNodes+10)+"a]\n", 2) + services(1), "more than 200000 values", 0, 2, 384 << 20},
		{"nothing but separators", strings.Repeat("---\n", 1<<20), "", 0, 0, 8 << 20},
		{"nothing but null", strings.Repeat("--- ~\n", 1<<19), "more than 2000 documents", 0, 1, 64 << 20},
		{"nothing but commas", "a: [" + strings.Repeat("a,", 2<<20-100) + "]", "more than", 0, 1, 8 << 20},
		{"ends that end nothing", strings.Repeat("...\n", 1<<20), "", 0, 0, 8 << 20},
		{"directives", strings.Repeat("%YAML 1.2\n", 1<<18), "", 0, 0, 8 << 20},
	} {
		files := []File{{Name: "bad.yaml", Data: []byte(tc.in)}, {Name: "good.yaml", Data: []byte(strings.Replace(good, "NAME", "other", 1))}}
		var objects []Object
		var findings []mesh.Finding
		bytes := allocated(func() { objects, findings = Decode(files, "") })
		t.Logf("%s: %d bytes in, %d findings, %d kB allocated", tc.why, len(tc.in), len(findings), bytes>>10)
		if len(objects) != tc.objects+1 || objects[len(objects)-1].Name != "other" {
			t.Errorf("%s: %d objects were read, want %d and the one of the other file", tc.why, len(objects), tc.objects)
		}
		if text := string(render(findings)); !strings.Contains(text, tc.says) || len(findings) > tc.most || HasError(findings) != (tc.most > 0) {
			t.Errorf("%s: %d findings, want %d at most and %q: %.500s", tc.why, len(findings), tc.most, tc.says, text)
		}
		if bytes > tc.bytes {
			t.Errorf("%s: %d bytes were allocated, want %d at most", tc.why, bytes, tc.bytes)
		}
	}
}

func services(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("---\n" + strings.Replace(good, "NAME", fmt.Sprintf("s%d", i), 1))
	}
	return b.String()
}

func list(n int) string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: List\nitems:\n")
	for i := range n {
		fmt.Fprintf(&b, "- {apiVersion: v1, kind: Service, metadata: {name: s%d}, spec: {ports: [{port: 80}]}}\n", i)
	}
	return b.String()
}

// TestSplit: documents end where YAML says, and lines are counted from the beginning of the file.
func TestSplit(t *testing.T) {
	for _, tc := range []struct{ why, in, want string }{
		{"one", "a: 1\n", "0:a: 1\n"},
		{"no line end", "a: 1", "0:a: 1"},
		{"two", "a: 1\n---\nb: 2\n", "0:a: 1\n|1:---\nb: 2\n"},
		{"a marker first", "---\na: 1\n", "0:---\na: 1\n"},
		{"comments and nothing", "# x\n---\n\n# y\n--- # z\na: 1\n---\n", "4:--- # z\na: 1\n"},
		{"text behind a marker", "--- {a: 1}\n---\tb\n", "0:--- {a: 1}\n|1:---\tb\n"},
		{"dashes that mark nothing", "a: |\n  ---\n----: 1\n---x: 1\n", "0:a: |\n  ---\n----: 1\n---x: 1\n"},
		{"an end", "a: 1\n...\nb: 2\n", "0:a: 1\n|2:b: 2\n"},
		{"directives", "a: 1\n...\n%YAML 1.2\n# x\n---\nb: 2\n---\nc: 3", "0:a: 1\n|2:%YAML 1.2\n# x\n---\nb: 2\n|6:---\nc: 3"},
		{"lines of DOS", "a: 1\r\n---\r\nb: 2\r\n", "0:a: 1\r\n|1:---\r\nb: 2\r\n"},
		{"nothing", "", ""},
	} {
		var got []string
		for line, text := range split([]byte(tc.in)) {
			got = append(got, fmt.Sprintf("%d:%s", line, text))
		}
		if s := strings.Join(got, "|"); s != tc.want {
			t.Errorf("%s: %q is split into %q, want %q", tc.why, tc.in, s, tc.want)
		}
	}
}

// TestLevelOfWhatIsNotShown: an error that is beyond a bound on findings still refuses.
func TestLevelOfWhatIsNotShown(t *testing.T) {
	r := &report{}
	r.begin("a")
	for range maxOfObject {
		r.at(&yaml.Node{}, "").level(mesh.LevelWarning, mesh.CodeProtocol, "", "", "w")
	}
	if HasError(r.findings) {
		t.Fatal("warnings are errors")
	}
	r.at(&yaml.Node{}, "").add(mesh.CodeInvalid, "", "", "e")
	r.at(&yaml.Node{}, "").level(mesh.LevelInfo, mesh.CodeProtocol, "", "", "i")
	if len(r.findings) != maxOfObject || !HasError(r.findings) {
		t.Errorf("%d findings, last %+v; want %d and an error", len(r.findings), r.findings[len(r.findings)-1], maxOfObject)
	}
	all := make([]mesh.Finding, 10)
	all[9] = mesh.Finding{Level: mesh.LevelError, Message: "late"}
	if got := atMost(4, all); len(got) != 4 || !HasError(got) || !strings.Contains(got[3].Message, "7 more findings are not shown; the first of them: late") {
		t.Errorf("cut to %+v", got)
	}
	if got := atMost(10, all); len(got) != 10 || got[9].Message != "late" {
		t.Errorf("nothing had to be cut: %+v", got)
	}
}
