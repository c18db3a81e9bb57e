#!/bin/sh
# What continuous integration runs for real Kubernetes: installs the Debian packages that are missing, then the checks.
set -eu
cd "$(dirname "$0")/../.."
missing=
for pair in runc:runc ip:iproute2 nft:nftables conntrack:conntrack socat:socat nsenter:util-linux; do
	command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update # package files for the tools image need the lists, too
if [ -n "$missing" ]; then
	# shellcheck disable=SC2086 # a list of words
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
fi
exec $sudo env "PATH=$PATH" make test-kube
