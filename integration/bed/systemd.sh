#!/bin/bash
# systemd.sh CRFS CONFIG ROOT SOCKET: runs `crfs serve` as deploy/crfs.service says, under a real systemd of its own (a user
# manager, in a mount namespace and a cgroup of its own), until SIGTERM. What crfs mounts below ROOT is seen by the caller as well.
# `XDG_RUNTIME_DIR=ROOT.systemd/run systemctl --user` speaks to it.
set -euo pipefail
# shellcheck source=bed.sh
. "$(dirname "${BASH_SOURCE[0]}")/bed.sh"

if [ "${1:-}" != --inside ]; then
	home=$3.systemd cgroup=crfs-systemd-$$
	mkdir -p "$3" "$home/run" "$home/systemd/user"
	chmod 700 "$home/run"
	ln -sfn "$1" "$home/current"
	sed "s|^ExecStart=.*|ExecStart=$home/current serve --config $2 --root $3 --address $4|" "$project/deploy/crfs.service" \
		>"$home/systemd/user/crfs.service"
	mount --bind "$3" "$3"
	mount --make-shared "$3"
	unified=/sys/fs/cgroup
	[ -e "$unified/cgroup.procs" ] || unified=/sys/fs/cgroup/unified
	mkdir "$unified/$cgroup"
	# The whole tree is given back when everything in it has ended.
	trap 'find "$unified/$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true' EXIT
	(
		echo "$BASHPID" >"$unified/$cgroup/cgroup.procs"
		exec unshare --mount --cgroup --propagation unchanged -- "${BASH_SOURCE[0]}" --inside "$home"
	) &
	inside=$!
	trap 'kill -TERM "$inside" 2>/dev/null || true' TERM INT HUP
	while kill -0 "$inside" 2>/dev/null; do wait "$inside" || true; done
	umount "$3" 2>/dev/null || true
	exit 0
fi

umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mkdir -p /run/systemd/system
export XDG_RUNTIME_DIR=$2/run XDG_CONFIG_HOME=$2 HOME=$2
systemd=/lib/systemd/systemd
"$systemd" --user --log-target=console &
manager=$!
trap 'systemctl --user stop crfs || true; systemctl --user exit || kill -KILL "$manager"' TERM INT HUP
for _ in $(seq 100); do
	systemctl --user is-system-running >/dev/null 2>&1 && break
	[ -S "$XDG_RUNTIME_DIR/systemd/private" ] && break
	sleep 0.05
done
systemctl --user start crfs &
while kill -0 "$manager" 2>/dev/null; do wait "$manager" || true; done
