#!/bin/bash
# host.sh TAR FOLDER: unpacks a Debian into FOLDER and boots it: a real systemd as the first process of namespaces of its own, with this
# machine's kernel, /dev/fuse and network. Prints its process number, for `nsenter --all --target`; ends when standard input does.
set -euo pipefail

if [ "$1" != --inside ]; then
	mkdir -p "$2"
	tar -C "$2" --numeric-owner -xf "$1"
	unified=/sys/fs/cgroup
	[ -e "$unified/cgroup.procs" ] || unified=/sys/fs/cgroup/unified
	cgroup=$unified/${CRFS_BED_ID:-crfs}-host-$$
	mkdir "$cgroup"
	trap 'kill -KILL "$unshare" 2>/dev/null || true; wait "$unshare" 2>/dev/null || true
		find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true' EXIT
	(
		echo "$BASHPID" >"$cgroup/cgroup.procs"
		exec unshare --mount --pid --fork --kill-child --cgroup --uts --ipc --propagation private -- \
			"${BASH_SOURCE[0]}" --inside "$2" >"$2.log" 2>&1 </dev/null
	) &
	unshare=$!
	until read -r init _ <"/proc/$unshare/task/$unshare/children" && [ "$(readlink "/proc/$init/exe")" != "$(readlink /proc/$$/exe)" ]; do
		kill -0 "$unshare" || { cat "$2.log" >&2; exit 1; }
		sleep 0.05
	done
	until nsenter --all --target "$init" systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'; do
		kill -0 "$unshare" || { cat "$2.log" >&2; exit 1; }
		sleep 0.1
	done
	echo "$init"
	cat >/dev/null
	exit
fi

cd "$2"
mount --bind . .
cd "$2"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty fuse; do
	touch "dev/$device"
	mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
pivot_root . .
umount -l .
mount --make-rshared /
hostname crfs-host
exec env -i container=crfs PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --log-target=console --show-status=no systemd.unit=multi-user.target
