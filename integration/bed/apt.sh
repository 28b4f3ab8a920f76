# shellcheck shell=bash
# Debian packages: installing what is missing, and fetching packages of a newer Debian into a private folder.
# The mirror is the one that this machine's own apt uses. Nothing is unpacked that apt did not verify.

apt_keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# apt_update: refreshes the machine's package lists, once a day at most.
apt_update() {
	if [ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' -newermt '1 day ago' -print -quit 2>/dev/null)" ] &&
		[ -n "$(find "$bed_cache/apt-updated" -newermt '1 day ago' 2>/dev/null)" ]; then
		return
	fi
	quietly "$bed_cache/apt.log" timeout 300 apt-get update || say "apt-get update failed: going on with the lists there are"
	touch "$bed_cache/apt-updated"
}

# apt_install PACKAGE...: installs packages, without what they merely recommend.
apt_install() {
	apt_update
	say "installing: $*"
	DEBIAN_FRONTEND=noninteractive quietly "$bed_cache/apt.log" timeout 600 \
		apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@" ||
		die "these packages cannot be installed: $*; the log is $bed_cache/apt.log"
}

# apt_unpack FOLDER PACKAGE...: unpacks packages of this machine's release, without installing them (so that
# no service is started and no configuration of the machine changes).
apt_unpack() {
	local folder=$1
	shift
	apt_update
	apt_fetch "$folder" apt-get "$@"
}

# apt_mirror: prints the address of the Debian mirror in use.
apt_mirror() {
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1
}

# apt_unpack_newer FOLDER SUITE PACKAGE...: the same from another Debian suite, through a private apt whose
# lists, keys and cache are its own.
apt_unpack_newer() {
	local folder=$1 suite=$2 root mirror
	shift 2
	apt_update
	mirror=$(apt_mirror)
	[ -n "$mirror" ] || { detail "this machine's apt has no Debian mirror"; return 1; }
	[ -r "$apt_keyring" ] || { detail "$apt_keyring is missing"; return 1; }
	root=$bed_cache/apt-$suite
	apt_private_root "$root" "$suite" "$mirror"
	quietly "$root/log" timeout 180 env APT_CONFIG="$root/apt.conf" apt-get update || return 1
	apt_fetch "$folder" env APT_CONFIG="$root/apt.conf" apt-get "$@"
}

# apt_release_root: prints the configuration of a private apt that knows only Debian itself, in this machine's release, or
# nothing where this machine has no Debian mirror.
apt_release_root() {
	local suite mirror
	apt_update
	suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	mirror=$(apt_mirror)
	[ -n "$mirror" ] && [ -n "$suite" ] && [ -r "$apt_keyring" ] || return 0
	apt_private_root "$bed_cache/apt-$suite" "$suite" "$mirror"
	if quietly "$bed_cache/apt.log" timeout 180 env APT_CONFIG="$bed_cache/apt-$suite/apt.conf" apt-get update; then
		echo "$bed_cache/apt-$suite/apt.conf"
	fi
}

apt_private_root() {
	local root=$1 suite=$2 mirror=$3
	mkdir -p "$root/lists/partial" "$root/cache/archives/partial" "$root/etc/preferences.d"
	: >"$root/status"
	echo "deb [signed-by=$apt_keyring] $mirror $suite main" >"$root/etc/sources.list"
	{
		# How to reach a mirror, and how old it may be, is the machine's own decision.
		apt-config dump | grep -E '^Acquire::(http|https|Check-Valid-Until|Check-Date|ForceIPv4|Retries)' || true
		cat <<-CONF
			Dir "$root";
			Dir::State "$root";
			Dir::State::Lists "lists";
			Dir::State::status "$root/status";
			Dir::Cache "$root/cache";
			Dir::Etc "$root/etc";
			Dir::Etc::SourceList "sources.list";
			Dir::Etc::SourceParts "/dev/null";
			Dir::Etc::Main "/dev/null";
			Dir::Etc::Parts "/dev/null";
			Acquire::Languages "none";
			Acquire::AllowInsecureRepositories "false";
			APT::Sandbox::User "root";
		CONF
	} >"$root/apt.conf"
}

# apt_fetch FOLDER APT-GET-COMMAND... PACKAGE...: `download` checks each package against the signed lists.
apt_fetch() {
	local folder=$1 part debs
	shift
	local command=()
	while [ "$1" != apt-get ]; do
		command+=("$1")
		shift
	done
	shift
	debs=$(mktemp -d "$bed_cache/debs.XXXXXX")
	part=$folder.part.$$
	if (cd "$debs" && quietly "$bed_cache/apt.log" timeout 300 "${command[@]}" apt-get -o APT::Sandbox::User=root download "$@"); then
		mkdir -p "$part"
		for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" "$part"; done
		rm -rf "$debs" "$folder"
		mv "$part" "$folder"
		return
	fi
	rm -rf "$debs"
	return 1
}
