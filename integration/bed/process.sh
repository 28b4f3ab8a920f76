# shellcheck shell=bash
# Long-running processes of a bed: started with their output in a file, ended by their own pid.

# process_start LOG COMMAND...: starts COMMAND in a session of its own and sets process_pid. It dies with this shell,
# however that ends.
process_start() {
	local log=$1
	shift
	setpriv --pdeathsig KILL -- setsid -- "$@" >>"$log" 2>&1 </dev/null &
	process_pid=$!
}

# process_runs PID: whether it runs (a zombie does not).
process_runs() {
	local state
	state=$(sed -nE 's/^[0-9]+ \(.*\) ([A-Z]) .*/\1/p' "/proc/$1/stat" 2>/dev/null) && [ -n "$state" ] && [ "$state" != Z ]
}

# process_wait PID SECONDS COMMAND...: waits until COMMAND succeeds; fails when the process ends or time is up.
process_wait() {
	local pid=$1 deadline=$((SECONDS + $2))
	shift 2
	until "$@" 2>/dev/null; do
		process_runs "$pid" || return 1
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.05
	done
}

# process_lost NAME LOG: a process did not come up: shows the end of its log and dies.
process_lost() {
	tail -n 20 "$2" | sed 's/^/     | /' >&2
	die "$1 does not start; its log is $2"
}

# process_stop PID SECONDS: SIGTERM, and SIGKILL to its process group when it does not end in time.
process_stop() {
	local deadline=$((SECONDS + $2)) rc=0
	process_runs "$1" || return 0
	kill -TERM "$1" 2>/dev/null || true
	while process_runs "$1"; do
		if [ "$SECONDS" -ge "$deadline" ]; then
			say "process $1 did not end within $2 s of SIGTERM: killed"
			kill -KILL -- "-$1" 2>/dev/null || kill -KILL "$1" 2>/dev/null || true
			rc=1
			break
		fi
		sleep 0.05
	done
	wait "$1" 2>/dev/null || true
	return "$rc"
}

# process_find TEXT [environ]: prints the pids of the processes with TEXT as a word of their command line, or as one of their
# variables, but not this shell's.
process_find() {
	local folder
	for folder in /proc/[0-9]*; do
		[ "${folder#/proc/}" = $$ ] && continue
		if { tr '\0' '\n' <"$folder/${2:-cmdline}"; } 2>/dev/null | grep -qxF -- "$1"; then
			echo "${folder#/proc/}"
		fi
	done
}

# unmount_below FOLDER: unmounts everything on or below FOLDER, the last mount first. Prints how many there were.
unmount_below() {
	local point count=0
	while read -r point; do
		count=$((count + 1))
		umount "$point" 2>/dev/null || umount --lazy "$point" 2>/dev/null || true
	done < <(awk -v top="$1" '$5 == top || index($5, top "/") == 1 { print $5 }' /proc/self/mountinfo | tac)
	echo "$count"
}
