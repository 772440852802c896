#!/bin/sh
# Gives a guest a host name and files of its own: what it changes of this machine's files is in memory only.
# Arguments: a directory to work in, the host name, and directories that the guest sees as they are.
set -e
work=$1 name=$2
shift 2
hostname "$name"
mount -t tmpfs -o mode=755 guest "$work"
mkdir "$work/upper" "$work/work" "$work/files"
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" overlay "$work/files"
for each in /proc /dev /sys; do mount --rbind "$each" "$work/files$each"; done
for each in /run /tmp /root; do
    mkdir -p "$work/files$each"
    mount -t tmpfs memory "$work/files$each"
done
for each; do
    mkdir -p "$work/files$each"
    mount --bind "$each" "$work/files$each"
done
exec chroot "$work/files" sh -c 'echo "ready $$"; exec sleep infinity'
