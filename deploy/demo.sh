#!/bin/bash
# demo.sh [--keep] [--link RTT_MS:MBIT]: a container started before its image is downloaded, on this machine, now.
#
# Installs what is missing, builds crfs, brings up a private registry, containerd and crfs, makes an image from Debian
# packages (Python with numpy), converts it, and runs it three times: by a plain pull, by crfs, and by crfs with the
# background fetch. Then it prints what that took, and takes everything down again. Nothing that this machine already
# runs is touched: all folders, sockets and mounts are private to the demonstration.
#
#   --keep    leaves the node running afterwards, and says how to look around, until Ctrl-C
#   --link    how far away the registry seems to be: round trip in milliseconds and speed in Mbit/s; the default
#             is 10:1000, and 0:0 is as fast as this machine is
set -euo pipefail
exec 2>&1
# shellcheck source-path=SCRIPTDIR source=../integration/bed/bed.sh
. "$(dirname "${BASH_SOURCE[0]}")/../integration/bed/bed.sh"

demo_usage() {
	sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
	exit "$1"
}

# ---- outside: prepares, then starts itself once more in a pen ----

demo_prepare() {
	section "This machine"
	machine_check "$project"
	tools_for_bed
	containerd_find

	section "Building crfs"
	(cd "$project" && cargo build --release --bin crfs) || die "crfs does not build"

	section "The image"
	say "Python with numpy, from Debian packages; made once and kept in $bed_cache"
	demo_layout=$("$bed_folder/image.sh" numpy)
}

# demo_pen: runs the rest with private mounts and processes, and cleans up behind it however it ends.
demo_pen() {
	demo_folder=$(mktemp -d "$bed_work/crfs-demo.XXXXXX")
	export CRFS_BED_ID=${demo_folder##*/} CRFS_BED_CACHE=$bed_cache
	"$bed_folder/pen.sh" "${BASH_SOURCE[0]}" --inside "$demo_folder" "$demo_layout" "$demo_link" "$demo_keep" <&0 &
	demo_pid=$!
	trap demo_clean EXIT
	trap demo_end INT TERM HUP
	demo_enter >"$demo_folder/enter"
	chmod +x "$demo_folder/enter"
	local rc
	while :; do
		rc=0
		wait "$demo_pid" || rc=$?
		process_runs "$demo_pid" || break
	done
	if [ "$rc" = 1 ] && cp -rL "$demo_folder/logs" "$bed_cache/demo-logs.$$" 2>/dev/null; then
		say "the logs are kept in $bed_cache/demo-logs.$$"
	fi
	return "$rc"
}

# demo_first: the first process of the pen, as the outside sees it.
demo_first() { cut -d ' ' -f 1 "/proc/$demo_pid/task/$demo_pid/children"; }

demo_enter() {
	local first=''
	until [ -n "$first" ]; do
		first=$(demo_first) && sleep 0.05
	done
	printf '#!/bin/sh\n# Runs a command among the mounts and processes of the demonstration.\n'
	# shellcheck disable=SC2016
	printf 'exec nsenter --target %s --mount --pid -- "$@"\n' "$first"
}

demo_end() { kill -TERM "$(demo_first)" 2>/dev/null || true; }

demo_clean() {
	kill -KILL "$demo_pid" 2>/dev/null || true
	wait "$demo_pid" 2>/dev/null || true
	node_clear_cgroups "$CRFS_BED_ID"
	rm -rf --one-file-system "$demo_folder"
}

# ---- inside ----

# demo_log LINE...: where a step's own output goes.
demo_log() { "$@" >>"$demo_folder/logs/steps.log" 2>&1; }

demo_seconds() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }'; }

demo_mb() { awk -v n="$1" 'BEGIN { printf "%.1f", n / 1e6 }'; }

# demo_size NAME:TAG: the compressed size of an image in the registry.
demo_size() {
	curl -fsS --noproxy '*' -H 'Accept: application/vnd.oci.image.manifest.v1+json' \
		-H 'Accept: application/vnd.docker.distribution.manifest.v2+json' \
		"http://$registry_direct/v2/${1%:*}/manifests/${1##*:}" |
		"$python" -c 'import json, sys; m = json.load(sys.stdin); print(sum(l["size"] for l in [m["config"], *m["layers"]]))'
}

demo_registry() {
	section "A private registry"
	registry_start "$demo_folder/registry"
	found registry "http://$registry_address; every byte that leaves it is counted"
	"$python" "$bed_folder/push.py" "$demo_layout:latest" "$registry_direct/demo/numpy:plain" >/dev/null ||
		die "the image cannot be pushed"
	demo_plain=$(demo_size demo/numpy:plain)

	local started=$EPOCHREALTIME
	say "\$ crfs convert oci:$demo_layout:latest docker://$registry_direct/demo/numpy:lazy"
	timeout 300 "$crfs" convert "oci:$demo_layout:latest" "docker://$registry_direct/demo/numpy:lazy" ||
		die "crfs convert failed"
	demo_lazy=$(demo_size demo/numpy:lazy)
	found converted "in $(demo_seconds "$started") s: $(demo_mb "$demo_plain") MB became $(demo_mb "$demo_lazy") MB"

	registry_control "link?rtt_ms=${demo_link%:*}&mbit=${demo_link#*:}" >/dev/null
	[ "$demo_link" = 0:0 ] ||
		found distance "from here on ${demo_link%:*} ms and ${demo_link#*:} Mbit/s away, as a registry in the next town would be"
}

# demo_node NAME true|false: a containerd and a crfs that have seen nothing yet.
demo_node() {
	mkdir -p "$demo_folder/$1"
	printf '[fetch]\nbackground = %s\n' "$2" >"$demo_folder/$1/crfs.toml"
	node_prepare "$demo_folder/$1" "$CRFS_BED_ID-$1"
	ln -sfnT "$node_folder/logs" "$demo_folder/logs/$1"
	crfs_start
	containerd_start
}

# demo_start SNAPSHOTTER IMAGE CONTAINER: pulls and runs; sets demo_took and demo_bytes.
demo_start() {
	registry_control reset >/dev/null
	local started=$EPOCHREALTIME
	say "\$ ctr image pull --snapshotter $1 $registry_address/$2"
	demo_log timeout 300 "$node_ctr" image pull --plain-http --snapshotter "$1" "$registry_address/$2" ||
		{ tail -n 15 "$demo_folder/logs/steps.log"; die "the pull failed"; }
	demo_run "$1" "$2" "$3" "$started"
	demo_bytes=$(registry_bytes)
	found "took" "$demo_took s, and $(demo_mb "$demo_bytes") MB left the registry"
}

# demo_run SNAPSHOTTER IMAGE CONTAINER STARTED: runs the image's own command; sets demo_took.
demo_run() {
	say "\$ ctr run --rm --snapshotter $1 $registry_address/$2 $3"
	timeout 300 "$node_ctr" run --rm --snapshotter "$1" "$registry_address/$2" "$3" >"$demo_folder/output" 2>&1 ||
		{ cat "$demo_folder/output"; die "the container failed"; }
	demo_took=$(demo_seconds "$4")
	sed 's/^/     | /' "$demo_folder/output"
}

# demo_again SNAPSHOTTER IMAGE CONTAINER: a second container of an image that is there.
demo_again() {
	demo_run "$@" "$EPOCHREALTIME"
	found "took" "$demo_took s"
}

# demo_mounts: what a running container stands on.
demo_mounts() {
	timeout 60 "$node_ctr" run --detach --snapshotter crfs "$registry_address/demo/numpy:lazy" looked-at sleep 600 ||
		die "the container failed"
	say "the layers, each a FUSE mount (paths below $node_folder):"
	awk -v top="$node_folder/" '$(NF - 2) ~ /^fuse/ && index($5, top) == 1 { print "     " $5 " (" $(NF - 2) ")" }' /proc/self/mountinfo |
		sed "s#$node_folder/##"
	say "the container's root, an overlay of them (lowest layer last):"
	awk -v id=looked-at '$(NF - 2) == "overlay" && $5 ~ id { print $5 "\n" $NF }' /proc/self/mountinfo |
		sed -e "s#$node_folder/##g" -e 's/,/\n  /g' -e 's/:/\n           /g' | sed 's/^/     /'
	demo_log timeout 60 "$node_ctr" task rm --force looked-at
	demo_log timeout 60 "$node_ctr" container rm looked-at
	awk -v top="$node_folder/" '$(NF - 2) ~ /^fuse/ && index($5, top) == 1 { n++ } END { exit n == 0 }' /proc/self/mountinfo || {
		tail -n 20 "$node_folder/logs/crfs.log"
		die "no layer is a FUSE mount: crfs fell back to a plain pull; its log says why"
	}
}

# demo_wait_idle: until nothing has left the registry for two seconds; sets demo_bytes.
demo_wait_idle() {
	local before=-1 deadline=$((SECONDS + 120))
	while demo_bytes=$(registry_bytes) && [ "$demo_bytes" != "$before" ] && [ "$SECONDS" -lt "$deadline" ]; do
		before=$demo_bytes
		sleep 2
	done
}

demo_row() { printf '   %-34s %14s %14s %18s\n' "$@"; }

demo_table() {
	section "Result"
	demo_row "" "plain pull" crfs "crfs, background"
	demo_row "until the container has answered" "$plain_took s" "$lazy_took s" "$eager_took s"
	demo_row "  bytes that needed to come" "$(demo_mb "$plain_bytes") MB" "$(demo_mb "$lazy_bytes") MB" "$(demo_mb "$eager_bytes") MB"
	demo_row "  share of the image" "$((100 * plain_bytes / demo_plain)) %" "$((100 * lazy_bytes / demo_lazy)) %" \
		"$((100 * eager_bytes / demo_lazy)) %"
	demo_row "bytes that followed" "-" "-" "$(demo_mb $((later_bytes - eager_bytes))) MB"
	demo_row "a second container" "$plain_again s" "$lazy_again s" "$eager_again s"
}

demo_inside() {
	crfs=${CRFS_BIN:-$project/target/release/crfs}
	crfs_server=("$crfs" serve --config '{config}' --root '{root}' --address '{socket}' --log-level info)
	# Another snapshotter in the place of crfs, to try the demonstration itself.
	[ -z "${CRFS_DEMO_SERVER:-}" ] || read -ra crfs_server <<<"$CRFS_DEMO_SERVER"
	trap demo_down EXIT
	trap 'exit 130' TERM INT HUP
	mkdir -p "$demo_folder/logs"
	{ tools_for_bed && containerd_find; } >/dev/null 2>&1
	demo_registry
	demo_node first false

	section "A plain pull, by overlayfs"
	demo_start overlayfs demo/numpy:plain plain
	plain_took=$demo_took plain_bytes=$demo_bytes
	demo_again overlayfs demo/numpy:plain plain-again
	plain_again=$demo_took

	section "The same image by crfs: only what the start needs"
	demo_start crfs demo/numpy:lazy lazy
	lazy_took=$demo_took lazy_bytes=$demo_bytes
	demo_again crfs demo/numpy:lazy lazy-again
	lazy_again=$demo_took
	demo_mounts
	node_stop

	section "By crfs with the background fetch: the rest follows while the container runs"
	demo_node second true
	demo_start crfs demo/numpy:lazy eager
	eager_took=$demo_took eager_bytes=$demo_bytes
	demo_wait_idle
	later_bytes=$demo_bytes
	found "followed" "$(demo_mb $((later_bytes - eager_bytes))) MB more, in the background"
	demo_again crfs demo/numpy:lazy eager-again
	eager_again=$demo_took
	demo_table
	[ -z "$demo_keep" ] || demo_stay
}

demo_stay() {
	cat <<-TEXT

		   The node stays up until Ctrl-C. From another terminal, as root:

		     $demo_folder/enter $node_ctr run --rm --snapshotter crfs $registry_address/demo/numpy:lazy mine
		     $demo_folder/enter $node_ctr snapshot --snapshotter crfs ls
		     $demo_folder/enter grep fuse /proc/mounts
		     curl http://$registry_address/_relay/counts
		     less $demo_folder/logs/second/crfs.log
	TEXT
	while :; do sleep 1; done
}

demo_down() {
	local rc=$?
	trap '' TERM INT HUP
	[ -z "${node_folder:-}" ] || node_stop
	registry_stop
	exit "$rc"
}

if [ "${1:-}" = --inside ]; then
	demo_folder=$2 demo_layout=$3 demo_link=$4 demo_keep=$5
	demo_inside
	exit
fi
demo_keep='' demo_link=10:1000
while [ $# -gt 0 ]; do
	case $1 in
	--keep) demo_keep=1 ;;
	--link) [[ ${2:-} =~ ^[0-9]+:[0-9]+$ ]] || demo_usage 2; demo_link=$2; shift ;;
	--help | -h) demo_usage 0 ;;
	*) demo_usage 2 ;;
	esac
	shift
done
demo_prepare
demo_pen
