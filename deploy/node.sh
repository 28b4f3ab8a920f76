#!/bin/sh
# node.sh install|uninstall|ready|stay: puts crfs on a Kubernetes node, and takes it off again, from within a privileged pod that has
# the node's / at /host and sees its processes. daemonset.yaml and uninstall.yaml run it; it ends with an error until it has succeeded,
# and is run again then.
#
#   install     binary, units and configuration; starts crfs, or replaces or restarts the running one; tells containerd of it (crfs setup)
#   uninstall   tells containerd to do without; when nothing uses crfs any more, removes all of it
#   ready       whether crfs serves
#   stay        waits to be ended
#
# Containers on the node notice nothing of an installation. CRFS_SETUP is what `crfs setup` is to be told; "none" leaves containerd's
# configuration to others. A file /crfs-config/config.toml becomes the node's /etc/crfs/config.toml.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
host=/host
library=/usr/local/lib/crfs
units=/etc/systemd/system

say() { echo "crfs: $*"; }

die() {
	echo "crfs: $*" >&2
	exit 1
}

# on_host COMMAND...: in the namespaces of the node's first process.
on_host() { nsenter --target 1 --mount --uts --ipc --net --pid -- "$@"; }

# put MODE FILE PATH: a file onto the node, whole or not at all. Fails if it is there already, as it is.
put() {
	if cmp -s "$2" "$host$3"; then
		return 1
	fi
	mkdir -p "$(dirname "$host$3")"
	cp "$2" "$host$3.new"
	chmod "$1" "$host$3.new"
	mv -f "$host$3.new" "$host$3"
	say "wrote $3"
}

# link TARGET PATH: a symlink on the node, in one step.
link() {
	mkdir -p "$(dirname "$host$2")"
	ln -sfn "$1" "$host$2.new"
	mv -fT "$host$2.new" "$host$2"
}

# check FILE: whether the node's crfs would start with that configuration.
check() {
	on_host "$program" config check "$1" || die "the configuration is not all right: the node's is as it was"
}

# check_config: makes sure of the configuration that the node will have, before anything is changed.
check_config() {
	mkdir -p "$host/etc/crfs"
	if [ -e /crfs-config/config.toml ]; then
		cp /crfs-config/config.toml "$host/etc/crfs/config.toml.new"
		check /etc/crfs/config.toml.new
		return
	fi
	if [ ! -e "$host/etc/crfs/config.toml" ]; then
		put 644 "$here/config.toml" /etc/crfs/config.toml
	fi
	check /etc/crfs/config.toml
}

# put_config: whether the node's configuration has become another.
put_config() {
	rm -f "$host/etc/crfs/config.toml.new"
	[ -e /crfs-config/config.toml ] && put 644 /crfs-config/config.toml /etc/crfs/config.toml
}

install() {
	[ -d "$host/run/systemd/system" ] || die "the node has no systemd, or its / is not at $host"
	[ ! -e "$host/usr/bin/crfs" ] || die "the node has crfs as a package already: remove one of the two"
	program=$library/crfs-$(sha256sum "$here/crfs" | cut -c 1-16)
	before=$(readlink "$host$library/current" || true)
	put 755 "$here/crfs" "$program" || true
	check_config
	put 644 "$here/crfs.service" "$units/crfs.service" || true
	# A systemd before 254 says that it does not know these settings, and goes on without them.
	put 644 "$here/preserve.conf" "$units/crfs.service.d/preserve.conf" || true
	on_host systemctl daemon-reload
	# Not before all is in place for a restart: what is changed already is not changed by the next try.
	changed=no
	! put_config || changed=yes
	if [ -n "$before" ] && [ "$before" != "$program" ] && on_host systemctl --quiet is-active crfs; then
		# Goes back by itself if the new one does not serve.
		on_host "$program" upgrade "$program"
	else
		link "$program" "$library/current"
		# A reload would bring only some of it. Containers notice neither; one that does not run is started below.
		[ "$changed" = no ] || on_host systemctl try-restart crfs
	fi
	link "$library/current" /usr/local/bin/crfs
	on_host systemctl --quiet enable --now crfs
	for file in "$host$library"/crfs-*; do
		case ${file#"$host"} in
		"$program" | "$before") ;;
		*) rm -f "$file" ;;
		esac
	done
	if [ "${CRFS_SETUP=--cri}" != none ]; then
		# shellcheck disable=SC2086 # several words
		on_host "$library/current" setup $CRFS_SETUP
	fi
	say "installed"
}

# own_overlays: prints the upper folders of the overlays that this very pod stands on, its sandbox's too: those of all that runs in the
# pod's network. They go with the pod, which stays until all else has gone.
own_overlays() {
	own=$(readlink /proc/self/ns/net)
	# In the node's network everybody is.
	[ "$own" != "$(readlink /proc/1/ns/net)" ] || return 0
	for process in /proc/[0-9]*; do
		if [ "$(readlink "$process/ns/net")" = "$own" ]; then
			sed -n 's|^[^ ]* [^ ]* [^ ]* [^ ]* / .* - overlay .*[ ,]upperdir=\([^ ,]*\).*|\1|p' "$process/mountinfo" || true
		fi
	done 2>/dev/null | sort -u | tr '\n' ' '
}

# What the node's own shell does in the end: $1 is the pod's own overlays, $2 where the units are, $3 where the program is. That goes
# after the root folder: until then another try finds what is left.
# shellcheck disable=SC2016 # for that shell
leave_node='
crfs=$3/current
root=$(crfs_root)
if ! crfs_leave mounts "$1"; then
	echo "crfs: the node keeps crfs until its containers have moved (kubectl drain); trying again later" >&2
	exit 1
fi
systemctl --quiet disable crfs
crfs_forget "$root"
rm -rf "$2/crfs.service" "$2/crfs.service.d" /etc/crfs /run/crfs /usr/local/bin/crfs "$3"
systemctl daemon-reload
systemctl reset-failed crfs 2>/dev/null || true
echo "crfs: removed"
'

uninstall() {
	if [ ! -e "$host$library/current" ]; then
		say "is not installed"
		return
	fi
	# First of all, so that pods which are made from now on do without crfs; this one too, when it is run again.
	if [ -e "$host/etc/crfs/setup.json" ]; then
		on_host "$library/current" setup --undo
	fi
	# This pod's own files may be among those that go. So nothing of it is left to be run when they do: the node's shell takes the place of
	# this one, with all that it needs. It sees the node's processes already; to enter their namespace nsenter would have to stay.
	script="$(cat "$here/leave.sh")$leave_node"
	exec nsenter --target 1 --mount --uts --ipc --net -- sh -euc "$script" sh "$(own_overlays)" "$units" "$library"
}

case ${1:-} in
install) install ;;
uninstall) uninstall ;;
ready) on_host systemctl --quiet is-active crfs ;;
stay)
	trap 'exit 0' TERM INT
	while :; do
		sleep 3600 &
		wait $!
	done
	;;
*) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
