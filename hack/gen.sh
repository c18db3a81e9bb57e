#!/bin/sh
# Regenerates the Go code of every .proto file. No plugin runs remotely; the network is used only to build the tools
# the first time (Go module proxy).
#
#   hack/gen.sh            write the files
#   hack/gen.sh --verify   write nothing; exit 1 and print the difference when the committed files are stale
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
"$root/hack/tools.sh" buf protoc-gen-go protoc-gen-go-grpc

# generated OUT lists the generated files below folder OUT, one a line.
generated() {
	(cd "$1" && find api demo/shop -name '*.pb.go' 2>/dev/null | LC_ALL=C sort)
}

case ${1-} in
'')
	stage=$(mktemp -d "$root/.tools/gen.XXXXXX")
	;;
--verify)
	stage=$(mktemp -d)
	;;
*)
	echo "gen: error: unknown argument $1 (only --verify is known)" >&2
	exit 64
	;;
esac
trap 'rm -rf "$stage"' EXIT INT TERM

# protoc's Go plugins write what they are given; a stale file of a removed .proto would survive, so everything is
# generated into an empty folder first and compared or moved as a whole.
.tools/buf lint
.tools/buf generate --output "$stage"

if [ "${1-}" = --verify ]; then
	status=0
	for file in $( (generated "$root"; generated "$stage") | LC_ALL=C sort -u); do
		[ -f "$stage/$file" ] || { echo "gen: $file has no .proto any more" >&2; status=1; continue; }
		diff -u "$root/$file" "$stage/$file" >&2 || status=1
	done
	[ $status -eq 0 ] || echo "gen: hint: run 'make gen' and commit the result" >&2
	exit $status
fi
for file in $(generated "$root"); do
	[ -f "$stage/$file" ] || rm -v "$file" >&2
done
for file in $(generated "$stage"); do
	cmp -s "$stage/$file" "$file" && continue
	mkdir -p "$(dirname "$file")"
	mv -f "$stage/$file" "$file"
	echo "gen: wrote $file" >&2
done
