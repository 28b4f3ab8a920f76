#!/bin/bash
# run.sh [OPTION...]: how fast containers start by crfs, beside a plain pull by containerd's overlayfs, on this machine.
#
# Builds crfs and the images (from Debian packages; kept for the next time), puts them in a private registry behind a
# simulated link, and starts them in alternating runs, each on a containerd and a crfs that have seen nothing yet.
# Everything it starts and mounts is its own, and is gone when it ends.
#
#   --only WHAT,...      which images: python, big, small, tiny; and micro, the file system once everything is cached
#                        (default: all five); and killed, what a container notices of the snapshotter's death
#   --image NAME=FOLDER  an image of your own, as an OCI layout with the tag latest: measured instead of those, or beside
#                        them where --only names some. It must end by itself and print the same line each time
#   --link RTT_MS:MBIT   how far away the registry seems to be (default 10:1000)
#   --runs N             runs of each way (default 3); medians are shown
#   --json FILE          every single run, as JSON
#   --save FOLDER        write RESULTS.md and its plot there (with peers PEERS.md; gather.py makes one of several JSON files)
#   --crfs FILE          another crfs than this tree's
#   --peer NAME=PROGRAM  another lazy snapshotter beside it, as often as there are: stargz (containerd-stargz-grpc; with
#                        `ctr-remote` beside it also images of its own) or soci (soci-snapshotter-grpc, with `soci`
#                        beside it). Its path is yours to give: nothing is fetched or built
#
# CRFS_BENCH_DISK=host puts the nodes on the machine's own file system, not on one of their own (disk.py says why).
#
# Examples:
#   integration/bench/run.sh --only python --runs 5
#   integration/bench/run.sh --only python,small --link 50:200 --json /tmp/runs.json
#   integration/bench/run.sh --image redis=/tmp/redis --link 30:100
#   integration/bench/run.sh --save integration/bench
#   integration/bench/run.sh --only python,killed --peer stargz=/usr/local/bin/containerd-stargz-grpc
set -euo pipefail
# shellcheck source=../bed/bed.sh
. "$(dirname "${BASH_SOURCE[0]}")/../bed/bed.sh"
bench_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

bench_usage() {
	sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '$d'
	exit "$1"
}

only='' own=() crfs='' options=(--how "integration/bench/run.sh $*")
while [ $# -gt 0 ]; do
	case $1 in
	--only) [ -n "${2:-}" ] || bench_usage 2; only=$2; shift ;;
	--image) [[ ${2:-} =~ ^[a-z0-9]+=. && -e ${2#*=}/index.json ]] || bench_usage 2; own+=("${2%%=*}=$(realpath "${2#*=}")"); shift ;;
	--link) [[ ${2:-} =~ ^[0-9.]+:[0-9.]+$ ]] || bench_usage 2; options+=(--link "$2"); shift ;;
	--runs) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || bench_usage 2; options+=(--runs "$2"); shift ;;
	--json) [ -n "${2:-}" ] || bench_usage 2; options+=(--json "$(realpath -m "$2")"); shift ;;
	--save) [ -n "${2:-}" ] || bench_usage 2; options+=(--save "$(realpath -m "$2")"); shift ;;
	--peer) [[ ${2:-} =~ ^[a-z]+=/ ]] || bench_usage 2; options+=(--peer "$2"); shift ;;
	--crfs) [ -x "${2:-}" ] || bench_usage 2; crfs=$(realpath "$2"); shift ;;
	--help | -h) bench_usage 0 ;;
	*) bench_usage 2 ;;
	esac
	shift
done
[ -n "$only" ] || [ ${#own[@]} -gt 0 ] || only=python,big,small,tiny,micro

section "This machine"
machine_check "$project"
tools_for_bed
tools_install ip:iproute2 mkfs.ext4:e2fsprogs
containerd_find
names=$("$python" -B -c 'import sys; sys.path.insert(0, sys.argv[1]); import images; print(*images.IMAGES, "micro", "killed")' "$bench_folder")
for image in "${own[@]}"; do
	[[ " $names " != *" ${image%%=*} "* ]] || die "--image ${image%%=*}: the name means another image here; give yours one of its own"
done
[ -c /dev/net/tun ] || { mkdir -p /dev/net && mknod -m 600 /dev/net/tun c 10 200; } 2>/dev/null
(: <>/dev/net/tun) 2>/dev/null || die "/dev/net/tun cannot be opened: load the kernel module 'tun', and in a container give it the device (--device /dev/net/tun)"
export CRFS_BED_CACHE=$bed_cache PYTHONDONTWRITEBYTECODE=1

if [ -z "$crfs" ]; then
	section "Building crfs"
	(cd "$project" && cargo build --release --bin crfs) || die "crfs does not build"
	crfs=$(cd "$project" && cargo metadata --format-version 1 --no-deps | sed -E 's/.*"target_directory":"([^"]*)".*/\1/')/release/crfs
fi

section "The images"
cold=$(tr , '\n' <<<"$only" | grep -vxE 'micro|killed' | paste -sd ,) || true
needed=${cold//,/ }
if [ "$only" = smoke ]; then
	options+=(--micro) # a test of all of this, on little
elif [[ ,$only, == *,micro,* ]]; then
	options+=(--micro)
	needed+=" small attributes big"
fi
if [[ ,$only, == *,killed,* ]]; then
	reader=small
	[ "$cold" != smoke ] || reader=smoke
	options+=(--killed "$reader")
	needed+=" $reader"
fi
for image in "${own[@]}"; do
	cold+=${cold:+,}${image%%=*}
	found "${image%%=*}" "${image#*=}"
	options+=(--layout "$image")
done
options+=(--cold "$cold" --containerd "$(containerd_version "$containerd_bin")")
for name in $(tr ' ' '\n' <<<"$needed" | grep . | sort -u); do
	layout=$("$python" -c 'import sys; sys.path.insert(0, sys.argv[1]); import images; print(images.build(images.IMAGES[sys.argv[2]], sys.argv[3]))' \
		"$bench_folder" "$name" "$bed_cache") || die "no image $name can be made"
	found "$name" "$layout"
	options+=(--layout "$name=$layout")
done

section "Measuring"
work=$(mktemp -d "$bed_work/bench.XXXXXX")
export CRFS_BED_ID=crfs-${work##*/} CRFS_BIN=$crfs
bench_clean() {
	# With the first process of the pen everything in it ends, and its mounts are gone.
	[ -z "${pen:-}" ] || { kill -KILL "$pen" && wait "$pen"; } 2>/dev/null || true
	node_clear_cgroups "$CRFS_BED_ID"
	rm -rf --one-file-system "$work"
}
trap bench_clean EXIT
trap 'exit 130' INT TERM HUP
"$bed_folder/pen.sh" unshare --net -- "$python" "$bench_folder/bench.py" --folder "$work" --crfs "$crfs" "${options[@]}" &
pen=$!
rc=0
wait "$pen" || rc=$?
pen=''
exit "$rc"
