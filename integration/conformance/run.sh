#!/bin/bash
# run.sh SNAPSHOTTER_NAME -- COMMAND...
# Runs containerd's snapshotter test suite against the daemon that COMMAND
# starts; {socket} and {root} in COMMAND are replaced. See README.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
	echo "usage: $0 SNAPSHOTTER_NAME -- COMMAND... (with {socket} and {root})" >&2
	exit 2
}
if [ $# -lt 3 ] || [ "$2" != -- ]; then usage; fi
name=$1
shift 2

test=${CONFORMANCE_TEST:-TestSnapshotterSuite}
run="^$test\$"
[ -z "${CONFORMANCE_RUN:-}" ] || run+="/$CONFORMANCE_RUN"

bin=$here/bin
(
	cd "$here"
	go test -p 1 -c -o "$bin/conformance.test" .
	go build -p 1 -o "$bin/" ./cmd/...
)
test2json=$(cd "$here" && go tool -n test2json)

log=${CONFORMANCE_LOG:-$here/logs/$name-$(date +%Y%m%d-%H%M%S).json}
mkdir -p "$(dirname "$log")"

# A mount namespace of its own: nothing this run mounts is seen by others, and
# nothing stays mounted if the run is killed.
ns=()
[ -n "${CONFORMANCE_NO_UNSHARE:-}" ] || ns=(unshare --mount --propagation private)

args=(-test.v=test2json -test.run "$run" -test.timeout "${CONFORMANCE_TIMEOUT:-20m}"
	-test.parallel "${CONFORMANCE_PARALLEL:-1}" -snapshotter "$name"
	-suite-name "${CONFORMANCE_SUITE_NAME:-}")
[ -z "${CONFORMANCE_STRICT:-}" ] || args+=(-strict)

echo "# $test, snapshotter $name, log $log"
rc=0
"$test2json" -t "${ns[@]}" "$bin/conformance.test" "${args[@]}" -- "$@" |
	tee "$log" | "$bin/summarize" -lines "${CONFORMANCE_LINES:-40}" || rc=$?
exit "$rc"
