#!/bin/sh
# A guest with Debian's cloud-init, which starts as it does at a boot: cloud_guest.sh TREE FOLDER
#
# TREE has cloud-init, unpacked. FOLDER gets the guest's root: TREE and this machine's files, with all changes in
# memory. To be run in mount, UTS, process and network namespaces of its own. Nothing is there of this machine's
# devices, since cloud-init may grow disks and file systems. Afterwards it prints what the guest is.
set -eu
tree=$1 folder=$2

mkdir -p "$folder"
mount -t tmpfs guest "$folder"
mkdir "$folder/changes" "$folder/work" "$folder/root"
cp -a "$tree/." "$folder/changes" # as a second lowerdir it would overlap with the first
mount -t overlay guest "$folder/root" -o "lowerdir=/,upperdir=$folder/changes,workdir=$folder/work"
cd "$folder/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
for each in dev run tmp var/log; do
    mount -t tmpfs guest "$each"
done
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/urandom c 1 9
ln -s /proc/self/fd dev/fd

# What the images of a cloud have: where to ask.
cat >etc/cloud/cloud.cfg.d/90_dpkg.cfg <<END
datasource_list: [ Ec2 ]
network: { config: disabled }
END
rm -rf etc/ssh/ssh_host_*
hostname nobody

for stage in "init --local" init "modules --mode=config" "modules --mode=final"; do
    # shellcheck disable=SC2086 # words
    chroot . cloud-init $stage >>"$folder/output" 2>&1 || {
        cat "$folder/output" var/log/cloud-init.log
        exit 1
    }
done
echo "instance $(cat var/lib/cloud/data/instance-id)"
echo "hostname $(hostname)"
echo "told $(cat run/told)"
echo "ran $(cat run/ran)"
echo "key $(cut -d ' ' -f 3 home/debian/.ssh/authorized_keys)"
echo "status $(chroot . cloud-init status)"
