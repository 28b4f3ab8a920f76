#!/bin/bash
# run.sh [--long] [FILTER...]: installs what is missing, builds, and runs every test: the unit tests, the tests that need a
# real node, and containerd's own conformance suite. The last line is the count; the exit status is 0 if nothing failed.
#
#   --long      also what takes minutes (CRFS_LONG=1)
#   FILTER      only tests whose name (BINARY::TEST, as printed) contains one of these words
set -euo pipefail
# shellcheck source=bed/bed.sh
. "$(dirname "${BASH_SOURCE[0]}")/bed/bed.sh"

[[ ${1:-} != --help && ${1:-} != -h ]] || { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit; }
section "This machine"
machine_check "$project"
tools_for_bed
containerd_find
go_find "$(sed -n 's/^go //p' "$project/integration/conformance/go.mod")" || export CRFS_NO_GO=1
(crictl_find) || export CRFS_NO_CRICTL=1
(containerd_of 1.7 && containerd_find) || export CRFS_NO_CONTAINERD_17=1
if prometheus=$(prometheus_find && echo "$prometheus_bin"); then export CRFS_BED_PROMETHEUS=$prometheus; fi

if zig=$(zig_find && echo "$ZIG_FOLDER"); then export ZIG_FOLDER=$zig; fi
if host=$(host_find bookworm && echo "$host_tar"); then export CRFS_BED_HOST=$host; fi
if [[ " $* " == *" --long "* ]] && older=$(host_find bullseye && echo "$host_tar"); then export CRFS_BED_HOST_OLDER=$older; fi

cd "$project"
export TMPDIR=$bed_work CRFS_BED_CACHE=$bed_cache CRFS_BED_REGISTRY=$registry_bin PYTHONDONTWRITEBYTECODE=1
exec "$python" "$bed_folder/runtests.py" "$@"
