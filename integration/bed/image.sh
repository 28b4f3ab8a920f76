#!/bin/bash
# image.sh NAME: builds the image that images/NAME.json describes, unless an earlier run kept it. Prints the folder of its
# OCI layout (use it as oci:FOLDER:latest).
set -euo pipefail
# shellcheck source=bed.sh
. "$(dirname "${BASH_SOURCE[0]}")/bed.sh"

[ $# = 1 ] || { echo "usage: image.sh NAME" >&2; exit 2; }
spec=$bed_folder/images/$1.json
[ -r "$spec" ] || die "no image is described by $spec"
key=$(cat "$spec" "$bed_folder/mkimage.py" "$bed_folder/packages.py" | sha256sum | cut -c 1-12)
out=$bed_cache/images/$1-$key
mkdir -p "$bed_cache/images"
exec {lock}>"$bed_cache/images/$1.lock"
flock "$lock"
if [ ! -e "$out/index.json" ]; then
	tools_python
	# Third parties' packages, which this machine may also know, would make another image.
	apt=$(apt_release_root)
	[ -z "$apt" ] || export APT_CONFIG=$apt
	rm -rf "$bed_cache/images/$1-"*
	PYTHONDONTWRITEBYTECODE=1 timeout 600 unshare --mount --propagation private "$python" "$bed_folder/mkimage.py" \
		--cache "$bed_cache" "$spec" "$out" >&2 || die "the image $1 cannot be built"
fi
echo "$out"
