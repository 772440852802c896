#!/bin/sh
# Boot a machine with systemd from a clean root: boot.sh ROOT OVERLAY NAME. ROOT is not changed; what the machine
# writes is in OVERLAY. The machine has no network but what its tests make, and ends with this process.
set -e
if [ "$1" != in-namespace ]; then
    exec unshare --mount --propagation private sh "$0" in-namespace "$@"
fi
# systemd-nspawn wants control groups of version 2, which this host may have mounted elsewhere.
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "$3/upper" "$3/work" "$3/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" "$3/root"
exec systemd-nspawn --quiet --directory="$3/root" --machine="$4" --register=no --keep-unit --private-network \
    --capability=all --console=pipe --kill-signal=SIGKILL --boot systemd.unit=multi-user.target
