// Command images writes container image archives: one of the recipes, or an image put together from files, folders
// and Debian packages.
//
//	images make echo -o echo.tar [--name example.org/echo:2]
//	images build --name example.org/x:1 [--file /in/image=file]... [--folder /in/image=folder]... [--package NAME]...
//	    [--entrypoint WORD]... [--env A=b]... [--user U] -o x.tar
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"isthmus.dev/isthmus/hack/images"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "images: error: %v\n", err)
		os.Exit(1)
	}
}

// list is a flag that may be given many times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func run(args []string) error {
	if len(args) == 0 || args[0] != "make" && args[0] != "build" {
		return fmt.Errorf("want `images make RECIPE -o FILE` (%s) or `images build --name NAME … -o FILE`", strings.Join(images.Recipes(), ", "))
	}
	verb, args := args[0], args[1:]
	recipe := ""
	if verb == "make" {
		if len(args) == 0 {
			return fmt.Errorf("want a recipe: %s", strings.Join(images.Recipes(), ", "))
		}
		recipe, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("images "+verb, flag.ContinueOnError)
	out := flags.String("o", "", "archive to write")
	name := flags.String("name", "", "name and tag of the image")
	source := flags.String("source", ".", "folder of this module's source, for recipes")
	work := flags.String("work", filepath.Join(os.TempDir(), "isthmus-images"), "folder for what is built or downloaded on the way")
	user := flags.String("user", "", "user that the image runs as")
	var files, folders, packages, entrypoint, env list
	flags.Var(&files, "file", "PATH-IN-IMAGE=FILE")
	flags.Var(&folders, "folder", "PATH-IN-IMAGE=FOLDER")
	flags.Var(&packages, "package", "Debian package whose files to add, without its dependencies")
	flags.Var(&entrypoint, "entrypoint", "a word of the program to run")
	flags.Var(&env, "env", "NAME=VALUE")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" {
		return fmt.Errorf("want -o FILE")
	}
	image := images.Image{Files: images.NewTree(), Entrypoint: entrypoint, Env: env, User: *user}
	if recipe != "" {
		var err error
		if image, err = images.Make(recipe, *source, *work); err != nil {
			return err
		}
	}
	if *name != "" {
		image.Name = *name
	}
	if err := image.Files.AddPackages(filepath.Join(*work, "packages"), packages...); err != nil {
		return err
	}
	for _, pair := range folders {
		at, from, _ := strings.Cut(pair, "=")
		if err := image.Files.AddFolder(at, from); err != nil {
			return err
		}
	}
	for _, pair := range files {
		at, from, _ := strings.Cut(pair, "=")
		info, err := os.Stat(from)
		if err != nil {
			return err
		}
		if err := image.Files.AddFile(at, from, info.Mode()); err != nil {
			return err
		}
	}
	return image.WriteFile(*out)
}
