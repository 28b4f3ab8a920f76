#!/bin/bash
# letter.sh FOLDER CRFS IMAGE APP: a machine as the documentation has it, for commands to the letter: nothing is set up, crfs has been built but
# not installed, containerd and its files are at their usual places, and `registry.example` and `docker.io` are on the network.
# IMAGE is an OCI layout that both have as (library/)python:3.12, APP one that docker.io has as library/app:1.
#
# Every line on standard input is run by bash; it is answered by its exit status, and its output is in FOLDER/said.
# Two commands are not the real ones, as there is no systemd here: `systemctl` does what it is asked to containerd and
# crfs, and `journalctl` shows their logs.
#
# /etc, /opt, /root, /usr/local/bin, /var/lib and the network are this machine's own: start it in a mount, process and network
# namespace (`pen.sh unshare --mount --net`).
set -euo pipefail
# shellcheck source=bed.sh
. "$(dirname "${BASH_SOURCE[0]}")/bed.sh"

folder=$(realpath "$1") crfs=$2 image=$3 app=$4
tools_for_bed
tools_install jq:jq
containerd_find
[ "$(readlink /proc/self/ns/net)" != "$(readlink /proc/1/ns/net)" ] || die "this needs a network namespace of its own"
ip link set lo up

# letter_places: folders that a machine has and this one may change.
letter_places() {
	local place
	mkdir -p "$folder"/{opt,root,usr-local-bin,var-lib,home/target/release}
	cp -a /etc "$folder/etc"
	rm -rf "$folder"/etc/{containerd,crfs}
	for place in etc opt root usr/local/bin var/lib; do
		mount --bind "$folder/${place//\//-}" "/$place"
	done
	ln -s "$crfs" "$folder/home/target/release/crfs"
	for place in containerd ctr containerd-shim-runc-v2; do ln -s "$containerd_bin/$place" "/usr/local/bin/$place"; done
	ln -s "$runc_bin" /usr/local/bin/runc
	export HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

# letter_certificate: one that this machine trusts, for both registries.
letter_certificate() {
	local names=DNS:registry.example,DNS:registry-1.docker.io tls=$folder/tls
	mkdir -p "$tls" /etc/ssl/certs
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=letter -keyout "$tls/ca.key" -out "$tls/ca.crt" \
		-addext basicConstraints=critical,CA:TRUE
	openssl req -newkey rsa:2048 -nodes -subj /CN=registry -keyout "$tls/key" -out "$tls/csr"
	openssl x509 -req -days 2 -in "$tls/csr" -CA "$tls/ca.crt" -CAkey "$tls/ca.key" -CAcreateserial \
		-extfile <(echo "subjectAltName=$names") -out "$tls/crt"
	cat "$tls/ca.crt" >>/etc/ssl/certs/ca-certificates.crt
	echo "127.0.0.1 localhost registry.example registry-1.docker.io" >/etc/hosts
}

# letter_registries: one with TLS at the usual port, over what was pushed to another without.
letter_registries() {
	registry_serve "$folder/registry"
	"$python" "$bed_folder/push.py" "$image:latest" "$registry_direct/library/python:3.12"
	"$python" "$bed_folder/push.py" "$image:latest" "$registry_direct/python:3.12"
	"$python" "$bed_folder/push.py" "$app:latest" "$registry_direct/library/app:1"
	process_stop "$registry_pid" 10
	sed "s|^http:.*|http: {addr: '127.0.0.1:443', secret: bed, tls: {certificate: $folder/tls/crt, key: $folder/tls/key}}|" \
		"$folder/registry/config.yml" >"$folder/registry/tls.yml"
	process_start "$folder/registry.log" env OTEL_TRACES_EXPORTER=none "$registry_bin" serve "$folder/registry/tls.yml"
	process_wait "$process_pid" 20 grep -q 'listening on' "$folder/registry.log" || process_lost docker-registry "$folder/registry.log"
}

# letter_systemctl: what stands in for systemd: `systemctl start|stop|restart|reload|disable [--now] UNIT`.
letter_systemctl() {
	cat >/usr/local/bin/journalctl <<-SH
		#!/bin/sh
		cat $folder/crfs.log $folder/containerd.log
	SH
	cat >/usr/local/bin/systemctl <<-SH
		#!/bin/bash
		set -e
		unit=\${!#}
		case \$unit in containerd | crfs) ;; *) echo "Unit \$unit.service not found." >&2; exit 5 ;; esac
		end() {
			[ "\$unit" != crfs ] || { crfs stop || true; return; }
			[ ! -e $folder/containerd.pid ] || kill "\$(cat $folder/containerd.pid)"
			while [ -e $folder/containerd.pid ] && kill -0 "\$(cat $folder/containerd.pid)" 2>/dev/null; do sleep 0.05; done
			rm -f $folder/containerd.pid
		}
		begin() {
			[ "\$unit" != crfs ] || { setsid crfs serve >>$folder/crfs.log 2>&1 & wait_for /run/crfs/crfs.sock; return; }
			setsid containerd >>$folder/containerd.log 2>&1 &
			echo "\$!" >$folder/containerd.pid
			until ctr version >/dev/null 2>&1; do sleep 0.05; done
		}
		wait_for() { until [ -S "\$1" ]; do sleep 0.05; done; }
		case \$1 in
		start) begin ;;
		restart) end; begin ;;
		stop | disable) end ;;
		reload) kill -HUP "\$(cat /var/lib/crfs/server.pid)" ;;
		*) echo "Unknown command verb \$1." >&2; exit 1 ;;
		esac
	SH
	chmod +x /usr/local/bin/{journalctl,systemctl}
}

letter_places
letter_certificate 2>"$folder/openssl.log" || die "no certificate can be made; the log is $folder/openssl.log"
letter_registries >/dev/null
letter_systemctl
systemctl start containerd </dev/null >/dev/null
cd "$folder/home"
echo READY
while IFS= read -r line; do
	rc=0
	: >"$folder/said"
	bash -c "$line" >>"$folder/said" 2>&1 </dev/null || rc=$?
	echo "$rc"
done
# Everything ends with the namespace; only what lies elsewhere is put away.
systemctl stop crfs >/dev/null 2>&1 || true
crfs stop --force >/dev/null 2>&1 || true
find /sys/fs/cgroup -depth -type d \( -path '*/default/*' -o -name default \) -exec rmdir {} + 2>/dev/null || true
