#!/bin/sh
# Run systemd as tests/netns/programs/boot_systemd.sh does, with an /etc and a /var/lib that it may write to:
# boot_writable.sh GROUP SYSTEMD. Both are in memory.
set -e
if [ "$1" != in-namespaces ]; then
    mkdir -p /run/cgroup
    mount -t cgroup2 cgroup2 /run/cgroup || exit 77
    mkdir "/run/cgroup/$1"
    echo $$ >"/run/cgroup/$1/cgroup.procs"
    exec unshare --fork --kill-child --pid --mount --ipc --cgroup sh "$0" in-namespaces "$2"
fi
mount -o remount,bind,ro /
mount -t proc proc /proc
for each in fs kernel vm; do mount -o bind,ro "/proc/sys/$each" "/proc/sys/$each"; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /run/etc /run/lock
cp -a /etc/. /run/etc
mount --bind /run/etc /etc
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=1777 tmpfs /var/tmp # in the place of PrivateTmp=
rm -rf /etc/systemd/system /etc/tproxy
mkdir -p /etc/systemd/system
cp /run/units/* /etc/systemd/system
for each in squid squid@ drain mirror front hosts link reload; do
    # A checkout may be below /tmp or /home; and this systemd cannot make device nodes.
    mkdir "/etc/systemd/system/tproxy-egress-$each.service.d"
    printf '[Service]\nPrivateTmp=no\nProtectHome=no\nPrivateDevices=no\nReadWritePaths=/var/tmp\n' \
        >"/etc/systemd/system/tproxy-egress-$each.service.d/test.conf"
done
exec env -i container=test SYSTEMD_UNIT_PATH=/etc/systemd/system \
    PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    "$2" --system --unit=test.target --log-target=console --show-status=no
