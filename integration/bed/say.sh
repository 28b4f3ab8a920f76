# shellcheck shell=bash
# What the bed's scripts say to a person: all on standard error, so that standard output stays for values.

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
	say_bold=$'\e[1m' say_dim=$'\e[2m' say_red=$'\e[31m' say_plain=$'\e[0m'
else
	say_bold='' say_dim='' say_red='' say_plain=''
fi

# section TITLE
section() { printf '\n%s== %s%s\n' "$say_bold" "$*" "$say_plain" >&2; }

# say TEXT
say() { printf '   %s\n' "$*" >&2; }

# found WHAT CHOICE: one aligned row of the list of what is used.
found() { printf '   %-18s %s\n' "$1" "$2" >&2; }

# detail TEXT: of interest only when something goes wrong.
detail() { printf '   %s%s%s\n' "$say_dim" "$*" "$say_plain" >&2; }

# die TEXT: says what is wrong and ends the script.
die() {
	printf '%serror:%s %s\n' "$say_red" "$say_plain" "$*" >&2
	exit 1
}

# quietly LOG COMMAND...: runs COMMAND with its output in LOG; shows the end of LOG if COMMAND fails.
quietly() {
	local log=$1 rc=0
	shift
	"$@" >>"$log" 2>&1 </dev/null || rc=$?
	if [ "$rc" != 0 ]; then
		say "failed (status $rc): $*"
		tail -n 15 "$log" | sed 's/^/     | /' >&2
	fi
	return "$rc"
}

# version_at_least HAVE WANT: compares dotted numbers.
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }
