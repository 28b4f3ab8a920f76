# shellcheck shell=bash
# What can be wrong with a machine, found before anything is built: each is mended, or named with a remedy.

# machine_check PROJECT: everything that building and running need of the machine itself.
machine_check() {
	[ "$(uname -s)" = Linux ] || die "crfs mounts FUSE and overlay file systems: it needs Linux"
	[ "$(id -u)" = 0 ] || die "mounting needs root: run this as root (sudo $0)"
	command -v apt-get >/dev/null || die "what is missing is installed by apt-get: this needs Debian or a relative of it"
	machine_fuse
	machine_namespaces
	machine_work
	tools_for_build
	machine_rust "$1"
}

# machine_fuse: /dev/fuse must exist and open.
machine_fuse() {
	if [ ! -e /dev/fuse ]; then
		modprobe fuse 2>/dev/null || true
		[ -e /dev/fuse ] || mknod -m 666 /dev/fuse c 10 229 2>/dev/null || true
	fi
	(: <>/dev/fuse) 2>/dev/null ||
		die "/dev/fuse cannot be opened: load the kernel module 'fuse', and in a container give it the device (--device /dev/fuse)"
	found /dev/fuse "opens; Linux $(uname -r)"
}

machine_namespaces() {
	unshare --mount --pid --fork --kill-child --mount-proc true 2>/dev/null ||
		die "no private mount namespace can be made: this needs CAP_SYS_ADMIN (in a container: --privileged)"
}

# machine_work: sets bed_work, a folder where overlay file systems and their upper folders can live. A folder
# that lies on overlayfs itself (usual in a container) cannot hold them.
machine_work() {
	local folder
	for folder in "${CRFS_BED_WORK:-${TMPDIR:-/tmp}}" /var/tmp /var/lib /dev/shm; do
		if machine_holds_overlay "$folder"; then
			bed_work=$folder
			found "work folder" "$bed_work ($(stat -f -c %T "$bed_work"), $(machine_free "$bed_work") MiB free)"
			[ "$(machine_free "$bed_work")" -ge 2048 ] ||
				say "less than 2 GiB are free in $bed_work; CRFS_BED_WORK names another folder"
			return
		fi
		detail "$folder cannot hold an overlay (it is $(stat -f -c %T "$folder" 2>/dev/null || echo missing)): trying the next"
	done
	die "no folder of this machine can hold an overlay file system: mount a real disk or a tmpfs and name it in CRFS_BED_WORK"
}

machine_free() { df --output=avail -m "$1" | tail -n 1 | tr -d ' '; }

machine_holds_overlay() {
	local probe rc=0
	[ -w "$1" ] || return 1
	probe=$(mktemp -d "$1/crfs-probe.XXXXXX") || return 1
	mkdir "$probe/lower" "$probe/upper" "$probe/work" "$probe/merged"
	unshare --mount --propagation private mount -t overlay overlay \
		-o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" "$probe/merged" 2>/dev/null || rc=1
	rm -rf "$probe"
	return "$rc"
}

# machine_rust PROJECT: the toolchain must be at least the rust-version of Cargo.toml. For an older default another toolchain of
# rustup's is used, or one is fetched into the bed's own folder: those that the machine has are never changed.
machine_rust() {
	local want have toolchain
	want=$(sed -nE 's/^rust-version *= *"([0-9.]+)".*/\1/p' "$1/Cargo.toml")
	PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
	have=$(rust_version)
	if ! version_at_least "$have" "$want" && command -v rustup >/dev/null; then
		detail "rustc is ${have}: looking for another toolchain with $want or newer"
		for toolchain in $(rustup toolchain list | cut -d ' ' -f 1); do
			! rust_use "$toolchain" "$want" || break
		done
		have=$(rust_version)
		if ! version_at_least "$have" "$want"; then
			rust_fetch "$want" || true
			have=$(rust_version)
		fi
	fi
	version_at_least "$have" "$want" ||
		die "Rust $want or newer is needed, this machine has ${have/#0/none}: install it (rustup toolchain install stable) and run this again"
	found rust "$have${RUSTUP_TOOLCHAIN:+ (toolchain $RUSTUP_TOOLCHAIN)}"
}

# rust_use TOOLCHAIN LEAST: uses that toolchain if it is new enough.
rust_use() {
	version_at_least "$(RUSTUP_TOOLCHAIN=$1 rust_version)" "$2" && export RUSTUP_TOOLCHAIN=$1
}

# rust_fetch VERSION: through rustup, into a home of the bed's own.
rust_fetch() {
	detail "fetching Rust $1 into $bed_cache/rustup"
	RUSTUP_HOME=$bed_cache/rustup quietly "$bed_cache/rustup.log" timeout 600 \
		rustup toolchain install --no-self-update --profile minimal -c clippy -c rustfmt "$1" || return 1
	export RUSTUP_HOME=$bed_cache/rustup RUSTUP_TOOLCHAIN=$1
}

rust_version() { { rustc --version 2>/dev/null || echo 'rustc 0'; } | cut -d ' ' -f 2 | sed 's/-.*//'; }
