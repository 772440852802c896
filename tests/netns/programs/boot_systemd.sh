#!/bin/sh
# Run systemd as process 1 of process, mount and control group namespaces: boot_systemd.sh GROUP SYSTEMD.
#
# GROUP is the name of a new control group. /run/units has the units, /run/tproxy.sh the command tproxy. Ends with
# 77 if control groups cannot be mounted.
set -e
if [ "$1" != in-namespaces ]; then
    mkdir -p /run/cgroup
    mount -t cgroup2 cgroup2 /run/cgroup || exit 77
    mkdir "/run/cgroup/$1"
    # The group that this shell is in becomes the root of the new control group namespace.
    echo $$ >"/run/cgroup/$1/cgroup.procs"
    exec unshare --fork --kill-child --pid --mount --ipc --cgroup sh "$0" in-namespaces "$2"
fi
# What systemd could write to is its own or read-only.
mount -o remount,bind,ro /
mount -t proc proc /proc
for each in fs kernel vm; do mount -o bind,ro "/proc/sys/$each" "/proc/sys/$each"; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for each in /usr/local/sbin /etc/systemd; do mount -t tmpfs -o mode=755 tmpfs "$each"; done
mkdir -p /etc/systemd/system /run/lock
cp /run/units/* /etc/systemd/system
cp /run/tproxy.sh /usr/local/sbin/tproxy
exec env -i container=test SYSTEMD_UNIT_PATH=/etc/systemd/system \
    PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    "$2" --system --unit=test.target --log-target=console --show-status=no
