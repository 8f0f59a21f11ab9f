#!/usr/bin/env bash
# The application kernel's kvm platform on a KVM that works as processors do: in a machine of QEMU's whose emulated processor
# has SVM, with Debian's kernel and its kvm-amd. Slow, but true; the host needs no KVM. Runs the platform's own tests and the
# kernel with a shell. Arguments: names of tests.
set -euo pipefail
cd "$(dirname "$0")/.."

kernel=$(ls -d "${XDG_CACHE_HOME:-$HOME/.cache}"/drupe/kernels/linux-image-*/ 2>/dev/null | tail -n 1)
[ -n "$kernel" ] || { echo "no kernel for tests: scripts/setup.sh --tests" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root

build() { (cd native && cargo "$@" --message-format=json) | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1; }
tests=$(build test --quiet -p drupe-appkernel-kvm --lib --no-run)
program=$(build build --quiet -p drupe-appkernel)

mkdir -p "$root"/{bin,dev,proc,sys,tmp,modules}
cp "$(command -v busybox)" "$root/bin/busybox"
for name in sh mount insmod poweroff echo cat seq sort wc; do ln -s busybox "$root/bin/$name"; done
cp "$tests" "$root/bin/tests"
cp "$program" "$root/bin/drupe-appkernel"
strip "$root/bin/tests" "$root/bin/drupe-appkernel"
{ ldd "$tests" "$program" 2>/dev/null || true; } | sed -n 's/.*[ \t]\(\/[^ ]*\) (.*/\1/p' | sort -u | while read -r library; do
    install -D "$library" "$root$library"
done
for module in irqbypass ccp kvm kvm-amd; do
    find "$kernel/lib/modules" -name "$module.ko" -exec cp {} "$root/modules/" \;
done
cat >"$root/init" <<INIT
#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for module in irqbypass ccp kvm kvm-amd; do [ -e /modules/\$module.ko ] && insmod /modules/\$module.ko; done
[ -c /dev/kvm ] || echo "NO KVM"
RUST_BACKTRACE=0 /bin/tests --test-threads=1 $* && echo "TESTS PASSED"
/bin/drupe-appkernel probe-kvm
said=\$(/bin/drupe-appkernel run --root / --no-confine --platform kvm -- /bin/sh -c 'for i in 1 2 3; do echo \$i | cat; done; seq 1 100 | sort -n | wc -l')
[ "\$said" = "1
2
3
100" ] && echo "SHELL PASSED"
poweroff -f
INIT
chmod 755 "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd"

timeout 900 qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu EPYC,+svm -smp 2 -m 1024 -nographic -no-reboot \
    -kernel "$kernel"/boot/vmlinuz-* -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1" </dev/null | tee "$work/log"
grep -q "TESTS PASSED" "$work/log" && grep -q "SHELL PASSED" "$work/log"
