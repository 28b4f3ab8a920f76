# shellcheck shell=bash
# A private containerd and a private crfs: own folders, own sockets.

node_cri=""

# node_prepare FOLDER NAMESPACE: writes the configuration and a `ctr` that needs no flags. Sets the node_* paths.
node_prepare() {
	node_folder=$1 node_namespace=$2
	node_socket=$1/containerd.sock node_ctr=$1/ctr
	crfs_socket=$1/crfs.sock crfs_root=$1/crfs crfs_config=$1/crfs.toml
	mkdir -p "$1/logs"
	[ ${#crfs_socket} -lt 100 ] || die "the path $1 is too long for a socket: choose a shorter folder"
	[ -e "$crfs_config" ] || printf '[fetch]\nbackground = false\n' >"$crfs_config"
	node_containerd_config >"$1/containerd.toml"
	cat >"$node_ctr" <<-SH
		#!/bin/sh
		PATH='$containerd_bin:$PATH' exec '$containerd_bin/ctr' --address '$node_socket' --namespace '$2' "\$@"
	SH
	chmod +x "$node_ctr"
	[ -z "$node_cri" ] || node_prepare_cri
}

node_prepare_cri() {
	mkdir -p "$node_folder/certs.d/$registry_address"
	echo "server = \"http://$registry_address\"" >"$node_folder/certs.d/$registry_address/hosts.toml"
	node_write_crictl
}

# node_write_crictl: a `crictl` that speaks to crfs's CRI proxy where crfs has one, else to containerd.
node_write_crictl() {
	node_crictl=$node_folder/crictl
	cat >"$node_crictl" <<-SH
		#!/bin/sh
		socket='$node_folder/cri.sock'
		[ -S "\$socket" ] || socket='$node_socket'
		exec '$crictl_bin' --timeout 60s --runtime-endpoint "unix://\$socket" --image-endpoint "unix://\$socket" "\$@"
	SH
	chmod +x "$node_crictl"
}

# node_cri_config: the CRI, pulling by the transfer service ("transfer") or by itself ("annotations"). What is not needed
# for pods in the host's network is left out: there is no CNI here.
node_cri_config() {
	local without=true
	[ "$node_cri" = transfer ] || without=false
	cat <<-TOML
		[plugins."io.containerd.cri.v1.images"]
		  snapshotter = "crfs"
		  disable_snapshot_annotations = $without
		  [plugins."io.containerd.cri.v1.images".pinned_images]
		    sandbox = "$registry_address/pause:lazy"
		  [plugins."io.containerd.cri.v1.images".registry]
		    config_path = "$node_folder/certs.d"
		[plugins."io.containerd.cri.v1.runtime"]
		  restrict_oom_score_adj = true
		  [plugins."io.containerd.cri.v1.runtime".cni]
		    bin_dirs = ["$node_folder/cni"]
		    conf_dir = "$node_folder/cni"
		  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
		    runtime_type = "io.containerd.runc.v2"
		    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
		      BinaryName = "$runc_bin"
		      SystemdCgroup = false
	TOML
}

node_containerd_config() {
	local platform snapshotter cri='"io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",'
	platform=linux/$(dpkg --print-architecture)
	[ "$containerd_line" = 2 ] || { node_containerd_old_config; return; }
	[ -z "$node_cri" ] || cri=''
	node_containerd_common 3 "$cri \"io.containerd.snapshotter.v1.erofs\","
	cat <<-TOML
		  [proxy_plugins.crfs.exports]
		    root = "$crfs_root"
		    enable_remote_snapshot_annotations = "true"
	TOML
	[ -z "$node_cri" ] || node_cri_config
	echo '[plugins."io.containerd.transfer.v1.local"]'
	# One entry replaces the built-in default: without its own entry overlayfs could not be pulled to.
	for snapshotter in overlayfs crfs; do
		cat <<-TOML
			  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
			    platform = "$platform"
			    snapshotter = "$snapshotter"
			    differ = "walking"
		TOML
	done
}

# node_containerd_old_config: for containerd 1.7, which has no transfer service that unpacks to a plugin.
node_containerd_old_config() {
	[ -z "$node_cri" ] || die "the bed has the CRI of the newest containerd only"
	node_containerd_common 2 '"io.containerd.grpc.v1.cri",'
}

# node_containerd_common VERSION PLUGINS: what both have; PLUGINS are further ones that are not wanted, each with a comma.
node_containerd_common() {
	cat <<-TOML
		version = $1
		root = "$node_folder/containerd"
		state = "$node_folder/run"
		disabled_plugins = [
		  $2
		  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
		  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
		]
		[grpc]
		  address = "$node_socket"
		[plugins."io.containerd.nri.v1.nri"]
		  disable = true
		[plugins."io.containerd.internal.v1.opt"]
		  path = "$node_folder/opt"
		[proxy_plugins.crfs]
		  type = "snapshot"
		  address = "$crfs_socket"
	TOML
}

containerd_start() {
	process_start "$node_folder/logs/containerd.log" env PATH="$containerd_bin:$(dirname "$runc_bin"):$PATH" \
		"$containerd_bin/containerd" --config "$node_folder/containerd.toml"
	containerd_pid=$process_pid
	process_wait "$containerd_pid" 30 timeout 5 "$node_ctr" version >/dev/null ||
		process_lost containerd "$node_folder/logs/containerd.log"
}

containerd_stop() {
	[ -n "${containerd_pid:-}" ] || return 0
	process_stop "$containerd_pid" 15
	containerd_pid=''
}

containerd_kill() {
	kill -KILL "$containerd_pid"
	wait "$containerd_pid" 2>/dev/null || true
	containerd_pid=''
}

# crfs_start: crfs_server is the command, with {config}, {root} and {socket}.
crfs_start() {
	local word command=()
	for word in "${crfs_server[@]}"; do
		word=${word//'{config}'/$crfs_config} word=${word//'{root}'/$crfs_root}
		command+=("${word//'{socket}'/$crfs_socket}")
	done
	process_start "$node_folder/logs/crfs.log" "${command[@]}"
	crfs_pid=$process_pid
	process_wait "$crfs_pid" 30 node_accepts "$crfs_socket" ||
		process_lost crfs "$node_folder/logs/crfs.log"
}

# node_accepts SOCKET: whether somebody listens there.
node_accepts() {
	"$python" -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1"
}

crfs_stop() {
	[ -n "${crfs_pid:-}" ] || return 0
	process_stop "$crfs_pid" 20
	crfs_pid=''
}

# crfs_processes: prints their pids. The keeper has a word about the root folder in its environment only.
crfs_processes() {
	process_find "$crfs_root"
	process_find "CRFS_KEEPER=$crfs_root" environ
}

# crfs_kill: kills all of crfs at once, so that nothing keeps the mounts alive.
crfs_kill() {
	local pid
	while pid=$(crfs_processes) && [ -n "$pid" ]; do
		# shellcheck disable=SC2086 # one word a process
		kill -KILL $pid 2>/dev/null || true
		wait "$crfs_pid" 2>/dev/null || true
	done
	crfs_pid=''
}

# crfs_crash: kills the server alone; its keeper starts another.
crfs_crash() { kill -KILL "$(cat "$crfs_root/server.pid")"; }

# crfs_clear: the end of crfs and of all its mounts, also of a keeper that stayed.
crfs_clear() {
	crfs_stop || true
	[ -S "$crfs_root/keeper.sock" ] || return 0
	timeout 20 "${crfs_server[0]}" stop --force --root "$crfs_root" >/dev/null || say "crfs cannot be stopped"
	[ -z "$(crfs_processes)" ] || { say "crfs left processes"; crfs_kill; }
}

# node_clear: ends and removes every container of the node.
node_clear() {
	local name
	[ -n "${containerd_pid:-}" ] && process_runs "$containerd_pid" || return 0
	[ -z "$node_cri" ] || timeout 60 "$node_crictl" rmp --all --force >/dev/null 2>&1 || say "a pod cannot be removed"
	for name in $(timeout 10 "$node_ctr" task ls -q 2>/dev/null); do
		timeout 20 "$node_ctr" task rm --force "$name" >/dev/null 2>&1 || say "the task $name cannot be ended"
	done
	for name in $(timeout 10 "$node_ctr" container ls -q 2>/dev/null); do
		timeout 20 "$node_ctr" container rm "$name" >/dev/null 2>&1 || say "the container $name cannot be removed"
	done
}

# node_stop: ends the node in order and leaves no process, mount or cgroup behind. Sets node_left to the number of
# mounts that had to be taken away.
node_stop() {
	local pid
	node_clear
	containerd_stop || true
	for pid in $(process_find "$node_socket"); do process_stop "$pid" 2 || true; done
	crfs_clear
	node_left=$(unmount_below "$node_folder")
	node_clear_cgroups "$node_namespace"
}

# node_clear_cgroups NAME: removes the cgroups that runc made for the containers of that namespace. Those of a process that
# has just been killed cannot be removed at once.
node_clear_cgroups() {
	local try
	for try in 1 2 3 4 5 6 7 8 9 10; do
		find /sys/fs/cgroup -depth -type d -path "*/$1*" -exec rmdir {} + 2>/dev/null || true
		[ -n "$(find /sys/fs/cgroup -maxdepth 2 -type d -name "$1*" -print -quit 2>/dev/null)" ] || return 0
		sleep "0.$try"
	done
}
