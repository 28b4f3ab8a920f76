# shellcheck shell=sh
# leave.sh: taking crfs off a node without taking a file from a container. Sourced by node.sh, and put by deb.sh at the start of the
# package's prerm and postrm. Wants $crfs, the program.

# crfs_root: prints the root folder that the daemon was configured with.
crfs_root() {
	root=$("$crfs" config show 2>/dev/null | sed -n 's/^root = "\(.*\)"$/\1/p')
	echo "${root:-/var/lib/crfs}"
}

# crfs_users: prints the images of layers that containers stand on, running or not, as the daemon tells.
crfs_users() {
	"$crfs" layers --json 2>/dev/null | sed -n '/"image":/{s/.*"image": *"\([^"]*\)".*/\1/;h}; /"users": *[1-9]/{g;p}' | sort -u
}

# crfs_mounts ROOT [OWN]: prints where overlays are mounted that stand on something below ROOT; they are there even if no daemon is.
# Those with an upper folder of OWN, which are words, are left out.
crfs_mounts() {
	[ -r /proc/self/mountinfo ] || return 0
	# As a variable of its environment awk takes it as it is, with the backslashes that stand for spaces.
	own=" ${2:-} " awk -v "top=dir=$1/" '$0 ~ / - overlay / && index($0, top) {
		if (!match($0, /[ ,]upperdir=[^ ,]*/) || !index(ENVIRON["own"], " " substr($0, RSTART + 10, RLENGTH - 10) " ")) print $5
	}' /proc/self/mountinfo
}

# crfs_leave [mounts [OWN]]: fails, and says why, if anything still uses crfs. Otherwise takes back what `crfs setup` has written into
# containerd's configuration, ends the daemon and unmounts the layers, which nothing uses. With `mounts` the daemon is not asked:
# a containerd that does not know crfs any more cannot tell it which containers have gone. OWN as above: the caller's own mounts.
crfs_leave() {
	root=$(crfs_root)
	users=$(crfs_mounts "$root" "${2:-}") || return 1
	[ "${1:-}" = mounts ] || users=$(crfs_users; echo "$users")
	users=$(echo "$users" | sed '/^$/d')
	if [ -n "$users" ]; then
		echo "crfs is in use, and is left as it is. Remove the containers of these images and these mounts first:" >&2
		echo "$users" | sed 's/^/  /' >&2
		echo "or take their files from them by: systemctl stop crfs; crfs stop --force" >&2
		return 1
	fi
	if [ -e /etc/crfs/setup.json ]; then
		if [ -d /run/systemd/system ]; then
			"$crfs" setup --undo || return 1
		else
			"$crfs" setup --undo --no-restart || return 1
		fi
	fi
	if [ -d /run/systemd/system ]; then
		systemctl stop crfs.service || return 1
	fi
	"$crfs" stop --force --root "$root" >/dev/null || return 1
	# systemd 254 and later would keep the layers' descriptors.
	if [ -d /run/systemd/system ]; then
		systemctl clean --what=fdstore crfs.service 2>/dev/null || true
	fi
}

# crfs_forget ROOT: removes a root folder, unless something is still mounted below it.
crfs_forget() {
	if [ -r /proc/self/mountinfo ] && awk -v "top=$1/" 'index($5 "/", top) == 1 { found = 1 } END { exit !found }' /proc/self/mountinfo; then
		echo "$1 is left as it is: something is mounted there" >&2
		return 0
	fi
	rm -rf --one-file-system "$1"
}
