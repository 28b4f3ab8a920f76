# shellcheck shell=bash
# Where containerd 2.1 or newer comes from, or one of 1.7 (containerd_line=1.7). The sources in order: what is installed, Debian's
# newer package, the project's release archive (not of 1.7), the Go module. Sets containerd_bin, the folder that holds containerd, ctr and
# the shim. CRFS_BED_CONTAINERD names the only sources to try ("debian module").

containerd_line=2
containerd_least=2.1
containerd_suite=sid
containerd_path=github.com/containerd/containerd/v2/cmd
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

# containerd_of LINE: which one is looked for: 2, or 1.7.
containerd_of() {
	containerd_line=$1
	case $1 in
	2) return ;;
	1.7) containerd_least=1.7 containerd_suite=trixie containerd_path=github.com/containerd/containerd/cmd containerd_module=v1.7.28 ;;
	*) die "no containerd of the line $1 is known: 2 or 1.7" ;;
	esac
	containerd_source[module]="built from the Go module $containerd_module"
}

# containerd_find: sets containerd_bin or dies. What an earlier run obtained is used again.
containerd_find() {
	local source cache=$bed_cache/containerd
	[ "$containerd_line" = 2 ] || cache=$cache-$containerd_line
	for source in ${CRFS_BED_CONTAINERD:-installed debian release module}; do
		containerd_bin=$cache/$source
		if [ "$source" = installed ] || ! containerd_usable "$containerd_bin"; then
			"containerd_from_$source" "$containerd_bin" || continue
			containerd_usable "$containerd_bin" || continue
		fi
		found containerd "$(containerd_version "$containerd_bin"): ${containerd_source[$source]}"
		return
	done
	die "no containerd $(containerd_wanted) was found or could be fetched: install one, or connect this machine to a Debian mirror"
}

containerd_wanted() {
	if [ "$containerd_line" = 2 ]; then echo "$containerd_least or newer"; else echo "$containerd_line"; fi
}

# containerd_fits VERSION: whether it is one that is looked for.
containerd_fits() {
	version_at_least "${1:-0}" "$containerd_least" || return 1
	[ "$containerd_line" = 2 ] || [[ $1 = "$containerd_line".* ]]
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
	[ -n "$version" ] && containerd_fits "$version"
}

containerd_from_installed() {
	local path version
	path=$(command -v containerd) || { detail "containerd: none installed"; return 1; }
	version=$(containerd_version "$(dirname "$path")")
	containerd_fits "$version" || {
		detail "containerd: the installed one is ${version:-broken}, not $(containerd_wanted)"
		return 1
	}
	mkdir -p "$(dirname "$1")"
	ln -sfnT "$(dirname "$path")" "$1"
}

containerd_from_debian() {
	detail "containerd: trying Debian's newer package"
	apt_unpack_newer "$1.root" "$containerd_suite" containerd || { detail "containerd: not to be had from Debian"; return 1; }
	ln -sfnT "$1.root/usr/bin" "$1"
}

containerd_from_release() {
	local arch archive url
	[ "$containerd_line" = 2 ] || { detail "containerd: no release archive of $containerd_line is known"; return 1; }
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
	path=$containerd_path
	[ -f go.mod ] || timeout 30 go mod init bed || return 1
	timeout 300 go get "$path/containerd@$containerd_module" "$path/ctr@$containerd_module" \
		"$path/containerd-shim-runc-v2@$containerd_module" || return 1
	CGO_ENABLED=0 timeout 1200 go build -trimpath -tags 'no_btrfs no_devmapper no_zfs' -o bin/ \
		"$path/containerd" "$path/ctr" "$path/containerd-shim-runc-v2"
)
