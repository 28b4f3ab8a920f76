#!/bin/bash
# run.sh [OPTION...]: crfs beside containerd's overlayfs, on this machine: cold starts over a simulated link, and
# microbenchmarks of the file system once everything is cached.
#
#   --link RTT_MS:MBIT   how far away the registry is (default 10:1000)
#   --runs N             runs of each, in turns; medians are printed (default 3)
#   --only WORD,...      of: python big small tiny micro (default: all)
#   --write              put the result into integration/bench/RESULTS.md and its plots beside it
#   --json FILE          every figure of every run, for programs
#
# Examples:
#   integration/bench/run.sh --only python --runs 5
#   integration/bench/run.sh --link 50:200 --only python --json /tmp/far.json
#   integration/bench/run.sh --write                 everything, about half an hour, and nothing else should run meanwhile
#
# Images are made from Debian packages and generated files, converted by `crfs convert`, and kept in the bed's cache.
# Everything runs in mount and process namespaces of its own and is taken away at the end.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../bed/bed.sh
. "$(dirname "${BASH_SOURCE[0]}")/../bed/bed.sh"

for option; do
	case $option in --help | -h) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
done
section "This machine"
machine_check "$project"
tools_for_bed
containerd_find
section "Building crfs"
[ -n "${CRFS_BIN:-}" ] || (cd "$project" && cargo build --release --bin crfs) || die "crfs does not build"
export CRFS_BIN=${CRFS_BIN:-$project/target/release/crfs} CRFS_BED_CACHE=$bed_cache TMPDIR=$bed_work PYTHONDONTWRITEBYTECODE=1
exec "$bed_folder/pen.sh" "$python" "$project/integration/bench/bench.py" "$@"
