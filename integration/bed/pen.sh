#!/bin/bash
# pen.sh COMMAND...: runs COMMAND in a mount and a process namespace of its own. Whatever COMMAND mounts is seen by
# nobody else, and when it or its parent ends or is killed, everything that it started and mounted is gone. /run is private, so that
# the fixed socket folder of containerd's shims does not meet another containerd's.
set -euo pipefail

if [ "${1:-}" = --inside ]; then
	shift
	mount -t tmpfs -o mode=755 tmpfs /run
	# As the first process of the namespace this shell also collects orphans.
	"$@" <&0 &
	command=$!
	trap 'kill -TERM "$command" 2>/dev/null || true' TERM INT HUP
	while :; do
		rc=0
		wait "$command" || rc=$?
		kill -0 "$command" 2>/dev/null || break
	done
	exit "$rc"
fi
[ $# -gt 0 ] || { echo "usage: pen.sh COMMAND..." >&2; exit 2; }
exec setpriv --pdeathsig KILL -- unshare --mount --pid --fork --kill-child --mount-proc --propagation private -- bash "${BASH_SOURCE[0]}" --inside "$@"
