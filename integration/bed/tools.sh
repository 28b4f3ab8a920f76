# shellcheck shell=bash
# The other tools that the bed needs. Each is used as installed if it is there.

# tools_for_build: a compiler, cmake and protoc, for the crates that build C or protocol buffers.
tools_for_build() {
	tools_install cc:gcc c++:g++ make:make cmake:cmake protoc:protobuf-compiler
}

# tools_for_bed: what a registry, an image and a container need. Sets python, registry_bin and runc_bin.
tools_for_bed() {
	tools_install unshare:util-linux nsenter:util-linux setpriv:util-linux mount:mount curl:curl \
		setfattr:attr gpgv:gpgv openssl:openssl ip:iproute2
	tools_python
	tools_private registry_bin docker-registry docker-registry
	tools_install runc:runc
	runc_bin=$(command -v runc)
	found runc "$("$runc_bin" --version | sed -n '1s/.* //p')"
}

# tools_python: Debian's Python if it is there, with the whole library (python3-minimal has a part of it).
tools_python() {
	local try
	for try in 1 2; do
		for python in /usr/bin/python3 "$(command -v python3 || true)"; do
			! "$python" -c 'import concurrent.futures, http.server, tarfile' 2>/dev/null || return 0
		done
		[ "$try" = 2 ] || apt_install python3
	done
	die "Python 3 is installed but does not work"
}

# tools_install COMMAND:PACKAGE...: installs the packages of the commands that are missing.
tools_install() {
	local pair missing=()
	for pair; do
		command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
	done
	[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

# tools_private VARIABLE COMMAND PACKAGE: a tool whose package would start a service is only unpacked.
tools_private() {
	local -n tool=$1
	local folder=$bed_cache/tools/$3
	if tool=$(command -v "$2"); then
		found "$2" "installed on this machine"
		return
	fi
	[ -d "$folder" ] || apt_unpack "$folder" "$3" || die "$2 is missing and its package $3 cannot be fetched"
	tool=$(find "$folder" -type f -path "*bin/$2" | head -n 1)
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

# prometheus_find: Prometheus, as installed or from its package. Sets prometheus_bin or dies.
prometheus_find() {
	tools_private prometheus_bin prometheus prometheus
	[ -x "$prometheus_bin" ]
}

crictl_module=v1.34.0

# crictl_find: a client of the CRI: as installed, or built once from its Go module. Sets crictl_bin or dies.
crictl_find() {
	local folder=$bed_cache/tools/crictl-$crictl_module lock
	crictl_bin=$(command -v crictl) && return
	crictl_bin=$folder/crictl
	mkdir -p "$folder"
	exec {lock}>"$folder.lock"
	flock "$lock"
	if [ ! -x "$crictl_bin" ]; then
		go_find 1.24 || die "no crictl is installed, and no Go new enough to build one"
		detail "crictl: building the Go module $crictl_module (some minutes)"
		quietly "$folder.log" env GOBIN="$folder" GOTOOLCHAIN=local CGO_ENABLED=0 timeout 900 \
			go install "sigs.k8s.io/cri-tools/cmd/crictl@$crictl_module" || die "crictl cannot be built; the log is $folder.log"
	fi
	exec {lock}>&-
}

# zig_find: what deploy/build.sh links with, kept in the bed's own folder. Sets ZIG_FOLDER or dies.
zig_find() {
	export ZIG_FOLDER=$bed_cache/tools/zig
	mkdir -p "$ZIG_FOLDER"
	tools_install objdump:binutils
	"$python" -m pip --version >/dev/null 2>&1 || apt_install python3-pip
	quietly "$ZIG_FOLDER.log" timeout 300 "$project/deploy/build.sh" --prepare ||
		die "zig cannot be had from the Python index; the log is $ZIG_FOLDER.log"
}

# host_find SUITE: a whole small Debian with systemd, made once. Sets host_tar or dies.
host_find() {
	local folder=$bed_cache/hosts mirror lock
	host_tar=$folder/$1.tar
	mkdir -p "$folder"
	exec {lock}>"$host_tar.lock"
	flock "$lock"
	if [ ! -e "$host_tar" ]; then
		tools_install debootstrap:debootstrap
		mirror=$(apt_mirror)
		[ -n "$mirror" ] || die "this machine's apt has no Debian mirror"
		detail "host: putting a Debian $1 together (a minute)"
		rm -rf --one-file-system "$folder/$1"
		quietly "$folder/$1.log" timeout 600 unshare --mount --propagation private \
			debootstrap --variant=minbase --include=systemd "$1" "$folder/$1" "$mirror" || die "a Debian $1 cannot be had; the log is $folder/$1.log"
		rm -rf "$folder/$1"/var/cache/apt/archives/*.deb "$folder/$1"/var/lib/apt/lists/*
		tar -C "$folder/$1" --numeric-owner -cf "$host_tar.part" .
		mv "$host_tar.part" "$host_tar"
		rm -rf --one-file-system "$folder/$1"
	fi
	exec {lock}>&-
}
