#!/bin/bash
# `make test-cgroup2 [TESTS=…]`: the tests of limits in a guest whose only cgroups are v2. QEMU emulates it (no KVM), with a kernel
# of Debian; its root is this host's, below a layer in memory: same programs, same .venv, nothing is written here.
# GUEST_KVM=1: its emulated processor has SVM, so that it has a KVM that works as processors do. GUEST_PATH: where more programs are.
# GUEST_INIT=systemd: systemd is the first process, with its bus, and makes the scopes that are asked for (--systemd-cgroup).
set -euo pipefail
cd "$(dirname "$0")/.."
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/integration/test_cgroups.py tests/integration/test_limits.py tests/integration/test_oci_cgroups.py tests/unit/resources)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/drupe/guest
work=$(mktemp -d)
share=''
trap '[ -z "$share" ] || kill "$share" 2>/dev/null || true; rm -rf "$work"' EXIT

die() { printf 'test-cgroup2: %s\nhint: %s\n' "$1" "$2" >&2 && exit 2; }
for need in qemu-system-x86_64 /usr/lib/qemu/virtiofsd busybox cpio; do
    command -v "$need" >/dev/null || die "no program $need" 'apt-get install --no-install-recommends qemu-system-x86 qemu-system-common busybox-static cpio'
done
[ -x .venv/bin/python ] || die 'no .venv' 'scripts/setup.sh --tests'

# The kernel: unpacked, never installed.
package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
[ -n "$package" ] || die 'no package linux-image-cloud-amd64 is known' 'apt-get update'
kernel=$cache/$package
if [ ! -d "$kernel" ]; then
    mkdir -p "$kernel.$$"
    (cd "$kernel.$$" && apt-get download -qq "$package" 2>/dev/null && dpkg -x ./*.deb . && rm ./*.deb)
    mv -T "$kernel.$$" "$kernel"
fi
release=$(basename "$kernel"/lib/modules/*)
busybox depmod -b "$kernel" "$release"

# The first root: only what it takes to mount the shared one.
mkdir -p "$work/root/bin" "$work/root/lib/modules/$release" "$work"/root/{proc,sys,dev,ro,rw,new}
cp "$(command -v busybox)" "$work/root/bin/busybox"
cp -r "$kernel/lib/modules/$release"/modules.* "$work/root/lib/modules/$release/"
processor=max
modules=(veth bridge br_netfilter nf_tables nft_chain_nat nft_masq nft_ct nft_fib_inet nft_reject_inet nf_conntrack tun loop)
[ -z "${GUEST_KVM:-}" ] || { processor=EPYC,+svm; modules+=(kvm-amd act_mirred cls_u32 sch_ingress); }
for directory in drivers/virtio fs/fuse fs/overlayfs; do
    (cd "$kernel/lib/modules/$release" && cp -r --parents "kernel/$directory" "$work/root/lib/modules/$release/")
done
cat >"$work/root/init" <<'INIT'
#!/bin/busybox sh
set -e
bb=/bin/busybox
$bb mount -t proc proc /proc; $bb mount -t sysfs sysfs /sys; $bb mount -t devtmpfs dev /dev
for module in virtio_pci virtiofs overlay; do $bb modprobe $module; done
$bb mount -t virtiofs -o ro host /ro
$bb mount -t tmpfs -o size=3g memory /rw
$bb mkdir /rw/up /rw/work
$bb mount -t overlay -o lowerdir=/ro,upperdir=/rw/up,workdir=/rw/work overlay /new
$bb mount -t proc proc /new/proc; $bb mount -t sysfs sysfs /new/sys; $bb mount -t devtmpfs dev /new/dev
$bb mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
$bb mkdir -p /new/dev/pts /new/dev/shm
$bb mount -t devpts devpts /new/dev/pts; $bb mount -t tmpfs shm /new/dev/shm
$bb mount -t tmpfs run /new/run; $bb mount -t tmpfs -o mode=1777 tmp /new/tmp
$bb mkdir -p /new/lib/modules && $bb mount -t tmpfs none /new/lib/modules
$bb ln -s "$($bb cat /modules)" "/new/lib/modules/$($bb uname -r)"
$bb cp /guest /new/run/guest
[ "$($bb cat /first)" = systemd ] || exec $bb switch_root /new /bin/bash /run/guest
$bb rm -f /new/.dockerenv
$bb mkdir -p /new/run/systemd/system /new/run/systemd/system.conf.d
$bb cp /units/* /new/run/systemd/system/
printf '[Manager]\nDefaultCPUAccounting=yes\nDefaultIOAccounting=yes\n' >/new/run/systemd/system.conf.d/guest.conf
exec $bb switch_root /new /lib/systemd/systemd --unit=guest.service --show-status=no
INIT
# The bus without what else a host starts before it: the guest is slow.
mkdir "$work/root/units"
printf '[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n' >"$work/root/units/dbus.socket"
cat >"$work/root/units/dbus.service" <<'UNIT'
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only
UNIT
cat >"$work/root/units/guest.service" <<'UNIT'
[Unit]
DefaultDependencies=no
Wants=dbus.service
After=dbus.service
[Service]
Type=oneshot
ExecStart=/bin/bash /run/guest
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
Delegate=yes
UNIT
echo "${GUEST_INIT:-bash}" >"$work/root/first"
chmod +x "$work/root/init"
cat >"$work/root/guest" <<GUEST
export PATH=${GUEST_PATH:+$GUEST_PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DRUPE_TEST_PATIENCE=${DRUPE_TEST_PATIENCE:-10}
ip link set lo up
hostname guest
[ -e /sbin/modprobe ] || ln -s "\$(command -v busybox)" /sbin/modprobe  # the kernel asks for what rules need
for module in ${modules[@]}; do
    busybox modprobe \$module 2>/dev/null
done
ulimit -n 20000
cd ${PWD@Q}
timeout ${GUEST_TIMEOUT_S:-1500} .venv/bin/python -m pytest -q --color=no -p no:cacheprovider --deselect=tests/integration/test_cgroups.py::test_stats_of_a_hundred_containers_are_cheap ${tests[*]@Q}
echo "guest: exit \$?"
busybox poweroff -f
GUEST
echo "$kernel/lib/modules/$release" >"$work/root/modules"
(cd "$work/root" && find . | cpio --quiet -o -H newc) >"$work/initramfs"

/usr/lib/qemu/virtiofsd --socket-path="$work/fs.sock" -o source=/ -o cache=always -o sandbox=chroot >"$work/share.log" 2>&1 &
share=$!
timeout "${GUEST_TIMEOUT_S:-1800}" qemu-system-x86_64 -accel tcg,thread=multi -cpu "$processor" -smp 2 -m 6G -nodefaults -no-reboot -display none \
    -object memory-backend-memfd,id=mem,size=6G,share=on -numa node,memdev=mem \
    -chardev "socket,id=fs,path=$work/fs.sock" -device vhost-user-fs-pci,chardev=fs,tag=host \
    -serial stdio -kernel "$kernel/boot/vmlinuz-$release" -initrd "$work/initramfs" \
    -append "console=ttyS0 quiet panic=-1 no_timer_check" </dev/null | tee "$work/console"
code=$(sed -n 's/.*guest: exit \([0-9]*\).*/\1/p' "$work/console" | tail -1)
[ -n "$code" ] || die 'the guest did not come to its end' "see above, and $work/share.log"
exit "$code"
