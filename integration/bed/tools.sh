# shellcheck shell=bash
# The other tools that the bed needs. Each is used as installed if it is there.

# tools_for_build: a compiler, cmake and protoc, for the crates that build C or protocol buffers.
tools_for_build() {
	tools_install cc:gcc c++:g++ make:make cmake:cmake protoc:protobuf-compiler
}

# tools_for_bed: what a registry, an image and a container need. Sets python, registry_bin and runc_bin.
tools_for_bed() {
	tools_install unshare:util-linux nsenter:util-linux setpriv:util-linux mount:mount curl:curl \
		setfattr:attr gpgv:gpgv
	if [ -x /usr/bin/python3 ]; then python=/usr/bin/python3; else
		command -v python3 >/dev/null || apt_install python3-minimal
		python=$(command -v python3)
	fi
	tools_private registry_bin docker-registry docker-registry
	tools_private runc_bin runc runc
}

# tools_install COMMAND:PACKAGE...: installs the packages of the commands that are missing.
tools_install() {
	local pair missing=()
	for pair; do
		command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
	done
	[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

# tools_private VARIABLE COMMAND PACKAGE: a tool whose package would start a service or change the machine is
# only unpacked.
tools_private() {
	local -n tool=$1
	local folder=$bed_cache/tools/$3
	if tool=$(command -v "$2"); then
		found "$2" "installed on this machine"
		return
	fi
	tool=$(find "$folder" -type f -name "$2" -perm -u+x 2>/dev/null | head -n 1)
	if [ -z "$tool" ]; then
		apt_unpack "$folder" "$3" || die "$2 is missing and its package $3 cannot be fetched"
		tool=$(find "$folder" -type f -name "$2" -perm -u+x | head -n 1)
	fi
	found "$2" "package of this Debian, unpacked in a private folder"
}

# go_find LEAST: finds Go of at least that version and puts its folder first in PATH.
go_find() {
	local folder
	for folder in "$(dirname "$(command -v go || echo /none/go)")" /usr/local/go/bin /usr/lib/go-*/bin; do
		[ -x "$folder/go" ] || continue
		version_at_least "$("$folder/go" env GOVERSION | sed 's/^go//')" "$1" || continue
		PATH=$folder:$PATH
		return
	done
	return 1
}
