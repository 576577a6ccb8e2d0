#!/bin/sh
# Runs a command of another Debian release on a lab machine: `unshare --mount sh engine.sh ROOT COMMAND...`.
# The release's folder becomes the root (pivot_root: after a chroot, `docker exec` would land in the machine's own root);
# what belongs to the machine is mounted into it, writes stay in memory. All mounts end with the process.
set -e
root=$1; shift
place=/run/engine
mkdir -p $place
mount -t tmpfs -o mode=755 tmpfs $place
mkdir $place/root $place/upper $place/work
mount -t overlay -o "lowerdir=$root,upperdir=$place/upper,workdir=$place/work" overlay $place/root
new=$place/root
mount -t proc proc $new/proc
mount --rbind /sys $new/sys
mount --rbind /dev $new/dev
mount --bind /run $new/run
for folder in /var/lib/docker /etc/docker; do
    mkdir -p "$new$folder"
    mount --bind "$folder" "$new$folder"
done
for file in /etc/resolv.conf /etc/hosts /etc/hostname; do
    rm -f "$new$file"; cp "$file" "$new$file"
done
mkdir -p $new/.old
cd $new
pivot_root . .old
umount -l /.old
exec "$@"
