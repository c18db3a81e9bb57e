package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// Limits of what a reader can hold at once.
const (
	MaxFileLines     = 600 // lines of a file, tests too
	MaxFunctionLines = 80  // lines of a function outside tests
)

// vague are package names that say nothing; what is in such a package belongs to the noun it works on.
var vague = map[string]bool{"util": true, "utils": true, "common": true, "helper": true, "helpers": true, "manager": true, "misc": true, "base": true, "shared": true}

// bareTodo is a note without an issue to look it up by.
var bareTodo = regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b($|[^(]|\([^#])`)

// umaskAt may set the umask: it does so on a thread that has unshared it and is thrown away.
const umaskAt = "demo/process"

// Source checks the Go files below fsys, generated ones and other modules apart, and returns a message for everything
// that breaks a rule of the style: file and function length, one package comment per package, telling package names,
// notes that name an issue, no init functions, no umask.
func Source(fsys fs.FS) ([]string, error) {
	var broken []string
	comments := map[string][]string{} // folder → files with a package comment
	folders := map[string]bool{}      // folders with Go files to check
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return skip(fsys, name)
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, name, text, parser.ParseComments)
		if err != nil {
			return fmt.Errorf("parse %s: %w", name, err)
		}
		if ast.IsGenerated(file) {
			return nil
		}
		folders[path.Dir(name)] = true
		if file.Doc != nil {
			comments[path.Dir(name)] = append(comments[path.Dir(name)], path.Base(name))
		}
		broken = append(broken, checkFile(files, file, name, string(text))...)
		return nil
	})
	for folder := range folders {
		switch found := comments[folder]; len(found) {
		case 1:
		case 0:
			broken = append(broken, folder+": no package comment; put one into the file a reader should open first")
		default:
			sort.Strings(found)
			broken = append(broken, fmt.Sprintf("%s: package comments in %s; keep the one in the file a reader should open first", folder, strings.Join(found, ", ")))
		}
	}
	sort.Strings(broken)
	return broken, err
}

// skip returns fs.SkipDir for folders that hold no source of this module.
func skip(fsys fs.FS, name string) error {
	base := path.Base(name)
	if name != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || base == "node_modules") {
		return filepath.SkipDir
	}
	if name != "." {
		if _, err := fs.Stat(fsys, path.Join(name, "go.mod")); err == nil {
			return filepath.SkipDir
		}
	}
	return nil
}

func checkFile(files *token.FileSet, file *ast.File, name, text string) []string {
	var broken []string
	add := func(pos token.Pos, format string, args ...any) {
		broken = append(broken, fmt.Sprintf("%s:%d: ", name, files.Position(pos).Line)+fmt.Sprintf(format, args...))
	}
	if lines := strings.Count(text, "\n"); lines > MaxFileLines {
		add(file.Package, "%d lines, at most %d: split it by noun", lines, MaxFileLines)
	}
	if vague[file.Name.Name] {
		add(file.Package, "package name %s says nothing; name what it is about", file.Name.Name)
	}
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if bareTodo.MatchString(comment.Text) {
				add(comment.Pos(), "a note without its issue; write TODO(#123)")
			}
		}
	}
	if strings.HasSuffix(name, "_test.go") {
		return broken
	}
	ast.Inspect(file, func(node ast.Node) bool {
		if call, ok := node.(*ast.SelectorExpr); ok && call.Sel.Name == "Umask" && isPackage(call.X, "syscall", "unix") && path.Dir(name) != umaskAt {
			add(call.Pos(), "the umask is that of every goroutine: what another one makes meanwhile gets the wrong mode; make a 0700 folder and move the file out of it")
		}
		return true
	})
	for _, declaration := range file.Decls {
		function, ok := declaration.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if function.Name.Name == "init" && function.Recv == nil {
			add(function.Pos(), "init runs before main can say no; call it from where it is needed")
		}
		lines := files.Position(function.End()).Line - files.Position(function.Pos()).Line + 1
		if lines > MaxFunctionLines {
			add(function.Pos(), "%s has %d lines, at most %d: take the decisions out of it", function.Name.Name, lines, MaxFunctionLines)
		}
	}
	return broken
}

// isPackage tells whether an expression is one of the names of packages.
func isPackage(x ast.Expr, names ...string) bool {
	name, ok := x.(*ast.Ident)
	return ok && slices.Contains(names, name.Name)
}
