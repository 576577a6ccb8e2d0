#!/bin/sh
# Another Debian release's place on a lab machine: `unshare --mount sh engine.sh ROOT`; stays, as /run/engine.pid.
# The release's folder becomes the root (pivot_root: after a chroot, `docker exec` would land in the machine's own root);
# what belongs to the machine is mounted into it, writes stay in memory. A dockerd enters this place, and so does the
# next one: containers that outlive a dockerd have their mounts here. All end with the machine.
set -e
root=$1
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
    rm -f "$new$file"; touch "$new$file"
    mount --bind "$file" "$new$file"
done
mkdir -p $new/.old
cd $new
pivot_root . .old
umount -l /.old
echo $$ >/run/engine.new
mv /run/engine.new /run/engine.pid
exec sleep infinity
