package images

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Recipes are the images that this package knows how to make, by name. Each takes the folder of this module's source
// and a folder for what is built or downloaded on the way.
var recipes = map[string]func(source, work string) (Image, error){
	"pause": func(source, work string) (Image, error) { return program(source, work, "pause") },
	"echo":  func(source, work string) (Image, error) { return program(source, work, "echo") },
	// Not for people: the admission webhook of the checks in hack/kube.
	"webhook": func(source, work string) (Image, error) { return program(source, work, "webhook") },
	"tools":   tools,
	"proxy":   proxy,
}

// Recipes lists the names that Make takes.
func Recipes() []string {
	var names []string
	for name := range recipes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Make prepares the image called name; its Name is isthmus.local/NAME:1 and may be changed.
func Make(name, source, work string) (Image, error) {
	recipe, ok := recipes[name]
	if !ok {
		return Image{}, fmt.Errorf("no recipe for an image %q, there are %s", name, strings.Join(Recipes(), ", "))
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return Image{}, err
	}
	image, err := recipe(source, work)
	if err != nil {
		return Image{}, fmt.Errorf("make image %s: %w", name, err)
	}
	image.Name = "isthmus.local/" + name + ":1"
	return image, nil
}

// program builds the Go program in the module's folder name and makes an image of nothing else.
func program(source, work, name string) (Image, error) {
	binary := filepath.Join(work, name)
	command := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", binary, "./"+name)
	command.Dir = source
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := command.CombinedOutput(); err != nil {
		return Image{}, fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	return Program(binary)
}

// Program is an image of one static program and an empty /tmp.
func Program(binary string) (Image, error) {
	files := NewTree()
	at := "/" + filepath.Base(binary)
	if err := files.AddFile(at, binary, 0o755); err != nil {
		return Image{}, err
	}
	if err := files.AddDir("tmp", os.ModeSticky|0o777); err != nil {
		return Image{}, err
	}
	return Image{Entrypoint: []string{at}, Files: files}, nil
}

// packages of the tools image: the programs, then the libraries that they load.
var packages = []string{
	"base-files", "dash", "coreutils", "socat", "netcat-openbsd", "bind9-dnsutils", "curl", "mawk", "grep", "sed", "iproute2",
	"procps", "ca-certificates",
	"libc6", "libgcc-s1", "libpcre2-8-0", "libselinux1", "libacl1", "libattr1", "libgmp10", "libssl3", "libreadline8",
	"libtinfo6", "libwrap0", "libnsl2", "libtirpc3", "libbsd0", "libmd0", "bind9-libs", "libuv1", "libnghttp2-14", "libxml2",
	"libicu72", "liblzma5", "zlib1g", "libstdc++6", "libjson-c5", "libmaxminddb0", "liblmdb0", "libkrb5-3", "libgssapi-krb5-2",
	"libk5crypto3", "libcom-err2", "libkrb5support0", "libkeyutils1", "libfstrm0", "libprotobuf-c1", "libcap2", "libedit2",
	"libidn2-0", "libunistring2", "libcurl4", "libldap-2.5-0", "libsasl2-2", "librtmp1", "libssh2-1", "libpsl5", "libbrotli1",
	"libzstd1", "libgnutls30", "libhogweed6", "libnettle8", "libp11-kit0", "libtasn1-6", "libffi8", "libmnl0", "libbpf1",
	"libelf1", "libxtables12", "libdb5.3", "libcap2-bin", "libproc2-0", "libsystemd0", "libgcrypt20", "libgpg-error0", "liblz4-1",
	"libncursesw6", "libcrypt1", "nftables", "libnftables1", "libnftnl11", "libjansson4", "libjemalloc2",
}

// tools is a small system for looking around from inside a cluster.
func tools(_, work string) (Image, error) {
	files, err := system(work, packages...)
	if err != nil {
		return Image{}, err
	}
	for name, target := range map[string]string{"usr/bin/sh": "dash", "usr/bin/awk": "mawk", "usr/bin/nc": "nc.openbsd"} {
		if err := files.AddLink(name, target); err != nil {
			return Image{}, err
		}
	}
	return Image{Cmd: []string{"/bin/sh"}, Env: searchPath, Files: files}, nil
}

// proxy is the product's agent with its Envoy, built as the product itself is built.
func proxy(source, work string) (Image, error) {
	root := filepath.Join(source, "..", "..")
	if out, err := exec.Command("make", "-C", root, "build").CombinedOutput(); err != nil {
		return Image{}, fmt.Errorf("make build: %w: %s", err, out)
	}
	envoy := os.Getenv("ISTHMUS_ENVOY")
	if envoy == "" {
		envoy = filepath.Join(root, ".tools", "envoy")
	}
	files, err := system(work, "libc6") // all that Envoy loads
	if err != nil {
		return Image{}, err
	}
	for name, program := range map[string]string{"usr/bin/isthmus-proxy": filepath.Join(root, "bin", "isthmus-proxy"), "usr/bin/envoy": envoy} {
		if err := files.AddFile(name, program, 0o755); err != nil {
			return Image{}, err
		}
	}
	return Image{Entrypoint: []string{"/usr/bin/isthmus-proxy"}, Env: append([]string{"ISTHMUS_ENVOY=/usr/bin/envoy"}, searchPath...), Files: files}, nil
}

// searchPath is the environment of an image with a system.
var searchPath = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}

// system is a file system laid out as Debian's, with the given packages, root and nobody.
func system(work string, packages ...string) (*Tree, error) {
	files := NewTree()
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := files.AddDir("usr/"+dir, 0o755); err != nil {
			return nil, err
		}
		if err := files.AddLink(dir, "usr/"+dir); err != nil {
			return nil, err
		}
	}
	if err := files.AddPackages(filepath.Join(work, "packages"), packages...); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
		"etc/group": "root:x:0:\nnogroup:x:65534:\n", "etc/nsswitch.conf": "hosts: files dns\n"} {
		if err := files.AddText(name, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		if err := files.AddDir(dir, os.ModeSticky|0o777); err != nil {
			return nil, err
		}
	}
	return files, nil
}
