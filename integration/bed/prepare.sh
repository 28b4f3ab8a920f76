#!/bin/bash
# prepare.sh: checks this machine and installs what building and testing need, and nothing else.
set -euo pipefail
# shellcheck source=bed.sh
. "$(dirname "${BASH_SOURCE[0]}")/bed.sh"

machine_check "$project"
tools_for_bed
