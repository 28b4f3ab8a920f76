#!/bin/bash
# build.sh [--prepare]: builds one crfs that runs on every Linux with glibc 2.28 (2018) or newer, and prints where it is
# (target/portable/crfs). It needs what an ordinary build needs, and Python's pip.
#
# Which versions of glibc's symbols a program wants is decided by its linker, so what `cargo build --release` has compiled is linked once
# more, by zig, which knows every glibc. zig is a package of the Python index; it is kept in target/zig, or in ZIG_FOLDER.
#
#   --prepare   only fetch zig
set -euo pipefail

glibc=2.28
zig_version=0.17.1
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$project/target}
zig_folder=${ZIG_FOLDER:-$target/zig}
zig=$zig_folder/$zig_version/ziglang/zig

die() {
	echo "error: $*" >&2
	exit 1
}

fetch_zig() {
	local part=$zig_folder/part.$$
	[ ! -x "$zig" ] || return 0
	rm -rf "$part"
	PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target "$part" \
		"ziglang==$zig_version" >&2 || die "zig cannot be installed by pip (in Debian: apt-get install python3-pip)"
	mv -T "$part" "$zig_folder/$zig_version"
}

# wants FILE: the newest version of glibc that a program wants symbols of.
wants() { objdump -T "$1" | sed -nE 's/.*GLIBC_([0-9.]+).*/\1/p' | sort -uV | tail -n 1; }

case ${1:-} in
'') ;;
--prepare) fetch_zig; exit ;;
*) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
fetch_zig
cd "$project"
# Below another cargo this variable is set, and would have everything compiled once more.
env -u CARGO_MANIFEST_DIR cargo build --release --lib >&2
portable=$target/portable
mkdir -p "$portable"
machine=$(rustc -vV | sed -n 's/^host: \([^-]*\)-.*/\1/p')
cat >"$portable/cc" <<-SH
	#!/bin/sh
	export ZIG_GLOBAL_CACHE_DIR='$zig_folder/cache' ZIG_LOCAL_CACHE_DIR='$zig_folder/cache'
	exec '$zig' cc -target $machine-linux-gnu.$glibc "\$@"
SH
chmod +x "$portable/cc"
edition=$(sed -n 's/^edition = //p' Cargo.toml | tr -d '"')
rustc --crate-name crfs --crate-type bin --edition "$edition" src/main.rs -C opt-level=3 -C strip=debuginfo \
	-L "dependency=$target/release/deps" --extern "crfs=$target/release/libcrfs.rlib" \
	-C "linker=$portable/cc" -o "$portable/crfs.new" >&2
newest=$(wants "$portable/crfs.new")
[ "$(printf '%s\n' "$newest" "$glibc" | sort -V | tail -n 1)" = "$glibc" ] || die "the linked crfs wants glibc $newest"
mv "$portable/crfs.new" "$portable/crfs"
echo "$portable/crfs"
