#!/bin/bash
# up.sh FOLDER [OPTION...]: a whole test bed in FOLDER: registry, containerd and crfs, private to this bed.
# Prints its sockets and ports as KEY=VALUE lines, then READY=1, and stays until its standard input ends or SIGTERM
# comes; then it takes everything down again and leaves only the logs.
#
#   --only registry          no containerd, no crfs
#   --only node              no registry
#   --listen IP              the registry there, without the relay
#   --no-crfs                containerd and the registry only
#   --server 'COMMAND'       another snapshotter in the place of crfs; {config}, {root} and {socket} are filled in
#   --containerd 1.7         a containerd of that line in the place of the newest
#   --cri transfer           containerd's CRI, which pulls by the transfer service; or, with `annotations`, by itself
#   --rtt-ms N, --mbit N     the registry behaves as if it were that far away
#
# Lines on standard input are commands: `crfs start|stop|kill|crash`, `containerd start|stop|kill`, `clear` (end all
# containers). Each is answered with KEY=VALUE lines and at last OK=1 or FAILED=1.
# FOLDER/node/crfs.toml is the configuration of crfs: what is there already is used, else the background fetch is off.
# The mounts are made in the caller's mount namespace: run the caller by pen.sh.
set -euo pipefail
# shellcheck source=bed.sh
. "$(dirname "${BASH_SOURCE[0]}")/bed.sh"

up_usage() {
	sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p' >&2
	exit 2
}

case ${1:--} in -*) up_usage ;; esac
mkdir -p "$1"
folder=$(realpath "$1")
shift
with_registry=1 with_node=1 with_crfs=1 listen='' relay_options=()
crfs_server=("${CRFS_BIN:-$project/target/release/crfs}" serve --config '{config}' --root '{root}' --address '{socket}'
	--log-level "${CRFS_BED_LOG_LEVEL:-info}")
while [ $# -gt 0 ]; do
	case $1 in
	--only)
		case ${2:-} in
		registry) with_node='' with_crfs='' ;;
		node) with_registry='' ;;
		*) up_usage ;;
		esac
		shift
		;;
	--listen) listen=${2:?} && shift ;;
	--no-crfs) with_crfs='' ;;
	--containerd) containerd_of "$2" && shift ;;
	--cri) node_cri=$2 && shift ;;
	--server) read -ra crfs_server <<<"$2" && shift ;;
	--rtt-ms | --mbit) relay_options+=("$1" "$2") && shift ;;
	*) up_usage ;;
	esac
	shift
done

up_down() {
	local rc=$?
	trap '' TERM INT HUP
	[ -z "$with_node" ] || node_stop
	registry_stop
	[ "${node_left:-0}" = 0 ] || detail "$node_left mounts were still there and were taken away"
	exit "$rc"
}
trap up_down EXIT
trap 'exit 0' TERM INT HUP

up_crfs_values() {
	printf 'CRFS_PID=%s\nCRFS_SOCKET=%s\nCRFS_ROOT=%s\nCRFS_CONFIG=%s\nCRFS_LOG=%s\n' \
		"$crfs_pid" "$crfs_socket" "$crfs_root" "$crfs_config" "$node_folder/logs/crfs.log"
}

up_containerd_values() {
	printf 'CONTAINERD_PID=%s\nCONTAINERD_SOCKET=%s\nCONTAINERD_LOG=%s\nCTR=%s\nNAMESPACE=%s\n' \
		"$containerd_pid" "$node_socket" "$node_folder/logs/containerd.log" "$node_ctr" "$node_namespace"
	[ -z "$node_cri" ] || printf 'CRICTL=%s\n' "$node_crictl"
}

# up_command WORDS: one line of standard input.
up_command() {
	case $* in
	"crfs start") crfs_start && up_crfs_values ;;
	"crfs stop") crfs_stop ;;
	"crfs kill") crfs_kill ;;
	"crfs crash") crfs_crash ;;
	"containerd start") containerd_start && up_containerd_values ;;
	"containerd stop") containerd_stop ;;
	"containerd kill") containerd_kill ;;
	clear) node_clear ;;
	*) return 1 ;;
	esac
}

tools_for_bed
printf 'FOLDER=%s\nPYTHON=%s\n' "$folder" "$python"
if [ -n "$listen" ]; then
	registry_serve "$folder/registry" "$listen"
	printf 'REGISTRY_DIRECT=%s\nREGISTRY_PID=%s\nREGISTRY_OUTPUT=%s\n' "$registry_direct" "$registry_pid" "$folder/registry/registry.log"
elif [ -n "$with_registry" ]; then
	registry_start "$folder/registry" "${relay_options[@]}"
	printf 'REGISTRY=%s\nREGISTRY_DIRECT=%s\nREGISTRY_LOG=%s\nREGISTRY_PID=%s\nRELAY_PID=%s\n' \
		"$registry_address" "$registry_direct" "$registry_log" "$registry_pid" "$relay_pid"
fi
if [ -n "$with_node" ]; then
	containerd_find
	[ -z "$node_cri" ] || crictl_find
	node_prepare "$folder/node" "${CRFS_BED_ID:-crfs-bed-$$-$RANDOM}"
	if [ -n "$with_crfs" ]; then
		crfs_start
		up_crfs_values
	fi
	containerd_start
	up_containerd_values
fi
echo READY=1

while read -ra words; do
	if up_command "${words[@]}"; then echo OK=1; else echo FAILED=1; fi
done
