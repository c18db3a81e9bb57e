#!/bin/sh
# Builds the tools of hack/tools into .tools: all of them, or those named as arguments.
# Go's build cache makes a second run cheap; a tool is replaced by rename, so two runs at once are harmless.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
[ $# -gt 0 ] || set -- buf protoc-gen-go protoc-gen-go-grpc staticcheck
mkdir -p "$root/.tools"
for tool in "$@"; do
	case $tool in
	buf) package=github.com/bufbuild/buf/cmd/buf ;;
	protoc-gen-go) package=google.golang.org/protobuf/cmd/protoc-gen-go ;;
	protoc-gen-go-grpc) package=google.golang.org/grpc/cmd/protoc-gen-go-grpc ;;
	staticcheck) package=honnef.co/go/tools/cmd/staticcheck ;;
	*) echo "tools: error: no tool is called $tool" >&2 && exit 64 ;;
	esac
	out=$root/.tools/$tool
	# A tool that is newer than the module file that pins it is current.
	if [ -x "$out" ] && [ "$out" -nt "$root/hack/tools/go.mod" ]; then
		continue
	fi
	echo "tools: building $tool" >&2
	(cd "$root/hack/tools" && GOFLAGS=-mod=readonly go build -trimpath -o "$out.$$" "$package")
	mv -f "$out.$$" "$out"
done
