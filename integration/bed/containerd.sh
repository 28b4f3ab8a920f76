# shellcheck shell=bash
# Where containerd 2.1 or newer comes from. The sources in order: what is installed, Debian's newer package, the
# project's release archive, the Go module. Sets containerd_bin, the folder that holds containerd, ctr and the shim.
# CRFS_BED_CONTAINERD names the only sources to try ("debian module").

containerd_least=2.1
containerd_module=v2.1.9
containerd_release=2.1.6
declare -A containerd_release_sha256=(
	[amd64]=577900a5a8684c27e344aeeb1fc64e355745f58cba7f83c53649235ba25abbbf
	[arm64]=9da292010d36d80afa3bb48cbd15f65d3bf38177217060272a1c3fd65351cfa4
)
declare -A containerd_source=(
	[installed]="installed on this machine"
	[debian]="Debian's newer package, unpacked in a private folder"
	[release]="the project's release archive $containerd_release"
	[module]="built from the Go module $containerd_module"
)

# containerd_find: sets containerd_bin or dies. What an earlier run obtained is used again.
containerd_find() {
	local source
	for source in ${CRFS_BED_CONTAINERD:-installed debian release module}; do
		containerd_bin=$bed_cache/containerd/$source
		if [ "$source" = installed ] || ! containerd_usable "$containerd_bin"; then
			"containerd_from_$source" "$containerd_bin" || continue
			containerd_usable "$containerd_bin" || continue
		fi
		found containerd "$(containerd_version "$containerd_bin"): ${containerd_source[$source]}"
		return
	done
	die "no containerd $containerd_least or newer was found or could be fetched: install one, or connect this machine to a Debian mirror"
}

containerd_version() {
	timeout 10 "$1/containerd" --version 2>/dev/null | sed -nE 's/.* v?([0-9]+\.[0-9]+[.0-9]*).*/\1/p'
}

containerd_usable() {
	local tool version
	for tool in containerd ctr containerd-shim-runc-v2; do
		[ -x "$1/$tool" ] || return 1
	done
	version=$(containerd_version "$1")
	[ -n "$version" ] && version_at_least "$version" "$containerd_least"
}

containerd_from_installed() {
	local path version
	path=$(command -v containerd) || { detail "containerd: none installed"; return 1; }
	version=$(containerd_version "$(dirname "$path")")
	version_at_least "${version:-0}" "$containerd_least" || {
		detail "containerd: the installed one is ${version:-broken}, older than $containerd_least"
		return 1
	}
	mkdir -p "$(dirname "$1")"
	ln -sfnT "$(dirname "$path")" "$1"
}

containerd_from_debian() {
	detail "containerd: trying Debian's newer package"
	apt_unpack_newer "$1.root" sid containerd || { detail "containerd: not to be had from Debian"; return 1; }
	ln -sfnT "$1.root/usr/bin" "$1"
}

containerd_from_release() {
	local arch archive url
	arch=$(dpkg --print-architecture)
	archive=containerd-static-$containerd_release-linux-$arch.tar.gz
	url=https://github.com/containerd/containerd/releases/download/v$containerd_release/$archive
	[ -n "${containerd_release_sha256[$arch]:-}" ] || { detail "containerd: no release archive is known for $arch"; return 1; }
	detail "containerd: trying the release archive"
	mkdir -p "$1.root"
	quietly "$1.log" timeout 200 curl -fsSL --connect-timeout 8 --max-time 180 -o "$1.root/$archive" "$url" ||
		{ detail "containerd: the release archive cannot be fetched"; return 1; }
	echo "${containerd_release_sha256[$arch]}  $1.root/$archive" | sha256sum --check --quiet >&2 ||
		{ rm -f "$1.root/$archive"; detail "containerd: the release archive has another checksum than the pinned one: not used"; return 1; }
	tar -C "$1.root" -xzf "$1.root/$archive"
	ln -sfnT "$1.root/bin" "$1"
}

containerd_from_module() {
	go_find 1.24 || { detail "containerd: no Go new enough to build it"; return 1; }
	detail "containerd: building the Go module (some minutes)"
	mkdir -p "$1.root"
	quietly "$1.log" containerd_build "$1.root" || { detail "containerd: the Go module cannot be built"; return 1; }
	ln -sfnT "$1.root/bin" "$1"
}

containerd_build() (
	cd "$1" || return 1
	path=github.com/containerd/containerd/v2/cmd
	[ -f go.mod ] || timeout 30 go mod init bed || return 1
	timeout 300 go get "$path/containerd@$containerd_module" "$path/ctr@$containerd_module" \
		"$path/containerd-shim-runc-v2@$containerd_module" || return 1
	CGO_ENABLED=0 timeout 1200 go build -trimpath -tags 'no_btrfs no_devmapper no_zfs' -o bin/ \
		"$path/containerd" "$path/ctr" "$path/containerd-shim-runc-v2"
)
