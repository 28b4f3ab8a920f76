# shellcheck shell=bash
# Everything of the bed: sourced by the scripts that use it. Sets bed_folder, bed_cache and project.

bed_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bed_cache=${CRFS_BED_CACHE:-/var/cache/crfs-bed}
project=$(cd "$bed_folder/../.." && pwd)
mkdir -p "$bed_cache"

. "$bed_folder/say.sh"
. "$bed_folder/apt.sh"
. "$bed_folder/tools.sh"
. "$bed_folder/machine.sh"
. "$bed_folder/containerd.sh"
. "$bed_folder/process.sh"
. "$bed_folder/registry.sh"
. "$bed_folder/node.sh"
