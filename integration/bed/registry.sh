# shellcheck shell=bash
# A private docker-registry on a port of its own, and the counting relay in front of it.

# registry_serve FOLDER [IP]: the registry alone. Sets registry_direct.
registry_serve() {
	local folder=$1 ip=${2:-127.0.0.1}
	mkdir -p "$folder/data"
	cat >"$folder/config.yml" <<-YAML
		version: 0.1
		log: {level: info, accesslog: {disabled: true}}
		storage:
		  filesystem: {rootdirectory: $folder/data}
		  delete: {enabled: true}
		  cache: {blobdescriptor: inmemory}
		http: {addr: "$ip:0", secret: bed}
	YAML
	process_start "$folder/registry.log" env OTEL_TRACES_EXPORTER=none "$registry_bin" serve "$folder/config.yml"
	registry_pid=$process_pid
	process_wait "$registry_pid" 20 grep -q 'listening on' "$folder/registry.log" ||
		process_lost docker-registry "$folder/registry.log"
	registry_direct=$(sed -nE 's/.*listening on ([0-9.:]+).*/\1/p' "$folder/registry.log" | tail -n 1)
}

# registry_start FOLDER [RELAY-OPTION...]: sets registry_direct and registry_address (through the relay).
registry_start() {
	local folder=$1
	shift
	registry_serve "$folder"
	: >"$folder/relay.out"
	process_start "$folder/relay.out" "$python" "$bed_folder/relay.py" "$registry_direct" --log "$folder/access.jsonl" "$@"
	relay_pid=$process_pid
	process_wait "$relay_pid" 20 grep -q '^PORT=' "$folder/relay.out" || process_lost "the relay" "$folder/relay.out"
	registry_address=127.0.0.1:$(sed -n 's/^PORT=//p' "$folder/relay.out" | tail -n 1)
	registry_log=$folder/access.jsonl
}

registry_stop() {
	[ -z "${relay_pid:-}" ] || process_stop "$relay_pid" 5 || true
	[ -z "${registry_pid:-}" ] || process_stop "$registry_pid" 10 || true
	relay_pid='' registry_pid=''
}

# registry_control VERB: speaks to the relay ("counts", "link?rtt_ms=10&mbit=1000").
registry_control() {
	local method=POST
	[ "$1" != counts ] || method=GET
	curl -fsS --noproxy '*' --max-time 10 -X "$method" "http://$registry_address/_relay/$1"
}

# registry_bytes: the bytes that left the registry since the last reset.
registry_bytes() { registry_control counts | sed -nE 's/.*"total": ([0-9]+).*/\1/p'; }
