#!/bin/bash
# deb.sh [--binary FILE] [--version VERSION] [--output FOLDER]: makes a Debian package of crfs and prints where it is.
#
#   --binary    crfs as build.sh links it; otherwise that is run first
#   --version   of the package; otherwise that of Cargo.toml
#   --output    where the package goes; otherwise target/portable
#
# It runs on Debian 10, Ubuntu 18.10 and whatever is newer. MAINTAINER names whom the package says it is from.
set -euo pipefail

deploy=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(dirname "$deploy")
binary='' version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$project/Cargo.toml" | head -n 1)
output=${CARGO_TARGET_DIR:-$project/target}/portable
while [ $# -gt 0 ]; do
	case $1 in
	--binary) binary=$2 ;;
	--version) version=$2 ;;
	--output) output=$2 ;;
	*) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
	esac
	shift 2
done
[ -n "$binary" ] || binary=$("$deploy/build.sh")
architecture=$(dpkg --print-architecture)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"
umask 022

put() { install -D -m "$1" "$deploy/$2" "$tree/$3"; }

install -D -m 755 "$binary" "$tree/usr/bin/crfs"
# Another program comes by another package, so the unit starts the program itself.
mkdir -p "$tree/lib/systemd/system"
sed 's|^ExecStart=.*|ExecStart=/usr/bin/crfs serve|; /^# A symlink, so that/d; /^#   /d; /^#$/d' "$deploy/crfs.service" \
	>"$tree/lib/systemd/system/crfs.service"
# An older systemd says that it does not know these settings, and goes on without them.
put 644 preserve.conf lib/systemd/system/crfs.service.d/preserve.conf
put 644 config.toml etc/crfs/config.toml
for page in TROUBLESHOOTING.md METRICS.md grafana.json ../README.md; do
	put 644 "$page" "usr/share/doc/crfs/$(basename "$page")"
done
put 644 debian/copyright usr/share/doc/crfs/copyright
maintainer=${MAINTAINER:-crfs <crfs@localhost>}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$deploy" log -1 --format=%ct 2>/dev/null || date +%s)}
printf 'crfs (%s) unstable; urgency=medium\n\n  * This version.\n\n -- %s  %s\n' "$version" "$maintainer" \
	"$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$tree/usr/share/doc/crfs/changelog.gz"

mkdir "$tree/DEBIAN"
sed "s|@VERSION@|$version|; s|@ARCHITECTURE@|$architecture|; s|@MAINTAINER@|$maintainer|; s|@SIZE@|$(du -sk "$tree" | cut -f 1)|" \
	"$deploy/debian/control" >"$tree/DEBIAN/control"
for script in postinst prerm postrm; do
	sed -e "/^#LEAVE#$/{r $deploy/leave.sh" -e 'd}' "$deploy/debian/$script" >"$tree/DEBIAN/$script"
	chmod 755 "$tree/DEBIAN/$script"
done
echo /etc/crfs/config.toml >"$tree/DEBIAN/conffiles"
(cd "$tree" && find usr lib -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
mkdir -p "$output"
file=$output/crfs_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz -z3 --build "$tree" "$file" >/dev/null
echo "$file"
