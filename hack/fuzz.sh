#!/bin/sh
# Runs every fuzz target of the packages given as arguments, all by default: 20,000 inputs each, or $FUZZ_INPUTS. It fails
# when a target fails, when one ran fewer than 10,000 inputs, and when there is none. An input that fails is left in the
# testdata/fuzz of its package, where the unit tests run it from then on.
set -eu
cd "${FUZZ_ROOT:-$(dirname "$0")/..}"
inputs=${FUZZ_INPUTS:-20000}
least=10000
[ $# -gt 0 ] || set -- ./...

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
module=$(go list -m)
go list -f '{{.Dir}} {{.ImportPath}}' "$@" >"$work/packages"
count=0
while read -r folder package; do
	targets=$(cat "$folder"/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' | sort)
	[ -n "$targets" ] || continue
	# Only what is ours is instrumented: go test -fuzz would compile all modules and the standard library anew.
	go test -c -gcflags="$module/...=-d=libfuzzer" -o "$work/test" "$package"
	for target in $targets; do
		if ! (cd "$folder" && timeout 300 "$work/test" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "${inputs}x" \
			-test.fuzzcachedir "$work/corpus" -test.parallel 2) >"$work/log" 2>&1 </dev/null; then
			cat "$work/log" >&2
			echo "fuzz: error: $package $target failed" >&2
			echo "fuzz: hint: go test -run $target $package runs its failing input again" >&2
			exit 1
		fi
		ran=$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' "$work/log" | tail -n 1)
		echo "fuzz: $package $target: ${ran:-0} inputs"
		if [ "${ran:-0}" -lt "$least" ]; then
			cat "$work/log" >&2
			echo "fuzz: error: $package $target ran ${ran:-0} inputs, $least at least" >&2
			exit 1
		fi
		count=$((count + 1))
	done
done <"$work/packages"
if [ "$count" = 0 ]; then
	echo "fuzz: error: no fuzz target was found in $*" >&2
	exit 1
fi
echo "fuzz: $count targets"
