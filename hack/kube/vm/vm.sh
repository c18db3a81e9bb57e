#!/bin/sh
# Runs a lab inside a virtual Debian 12 machine and checks it there: cgroup v2 under systemd, a stock kernel, all of
# root's capabilities. The processor is emulated, so no virtualisation is needed; a run takes some five minutes.
#
#	vm.sh KUBELAB IMAGES    # the program; a folder with tools.tar
set -eu
here=$(cd "$(dirname "$0")" && pwd)
kubelab=$1
images=$2

fail() {
	echo "vm: error: $1" >&2
	echo "vm: hint: $2" >&2
	exit 1
}
[ "$(id -u)" = 0 ] || fail "needs root: it makes a file system with Debian's packages" "run it again with sudo"
missing=
for pair in qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs; do
	command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
[ -z "$missing" ] || fail "not installed:$missing" "apt-get install$missing"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
root=$work/root
# The machine's own sources: they are reachable from here.
sources=
for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
	[ ! -s "$file" ] || sources="$sources $file"
done
echo "vm: making a Debian 12 machine" >&2
# shellcheck disable=SC2086 # a list of files
mmdebstrap --quiet --variant=minbase bookworm "$root" $sources \
	--include=systemd-sysv,udev,kmod,procps,linux-image-cloud-amd64,runc,iproute2,nftables,conntrack,socat
install -D -m 755 "$kubelab" "$root/usr/local/bin/kubelab"
install -D -m 755 "$here/guest.sh" "$root/opt/guest.sh"
cp -a "$("$kubelab" build)" "$root/opt/kube"
cp "$images/tools.tar" "$root/opt/"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
cat >"$root/etc/systemd/system/lab.service" <<'U'
[Service]
ExecStart=/opt/guest.sh
ExecStopPost=/sbin/poweroff -f
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
U
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../lab.service "$root/etc/systemd/system/multi-user.target.wants/lab.service"
ln -s /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service" # it would hang up on the output
truncate -s 8G "$work/disk"
mke2fs -q -t ext4 -d "$root" "$work/disk"

echo "vm: starting it" >&2
timeout 1200 qemu-system-x86_64 -m 6G -smp 2 -accel tcg,thread=multi -cpu max -display none -no-reboot -net none \
	-kernel "$root"/boot/vmlinuz-* -initrd "$root"/boot/initrd.img-* -append 'console=ttyS0 root=/dev/vda rw quiet systemd.show_status=no' \
	-drive "file=$work/disk,if=virtio,format=raw,cache=unsafe" -serial stdio </dev/null | tee "$work/console"
grep -q '^vm: PASS' "$work/console" || fail "the lab in the virtual machine failed" "its console is above"
