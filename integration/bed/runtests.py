#!/usr/bin/python3
"""Builds every test binary once and runs every test in a process of its own, with a time limit.

Unit tests run two at a time. Tests that need a node run one by one, each in a pen (pen.sh): when it ends or is killed,
nothing that it started or mounted is left. A test that prints `skipped: REASON` counts as skipped.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

BED = os.path.dirname(os.path.abspath(__file__))
CONFORMANCE = os.path.join(os.path.dirname(BED), "conformance")
UNIT_LIMIT, NODE_LIMIT, LONG_LIMIT, SUITE_LIMIT = 120, 300, 1800, 1500
SHOWN = 80  # lines of a failed test's output


class Tally:
    def __init__(self):
        self.passed, self.failed, self.skipped = 0, [], 0

    def ok(self, name, seconds):
        self.passed += 1
        print(f"ok       {seconds:7.2f}s  {name}", flush=True)

    def skip(self, name, reason):
        self.skipped += 1
        print(f"skipped            {name}: {reason}", flush=True)

    def fail(self, name, seconds, why, output):
        self.failed.append(name)
        lines = output.rstrip().splitlines()
        if len(lines) > SHOWN:
            lines = [f"({len(lines) - SHOWN} lines left out)"] + lines[-SHOWN:]
        shown = "".join(f"\n         | {line}" for line in lines)
        print(f"FAILED   {seconds:7.2f}s  {name}: {why}{shown}", flush=True)

    def line(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {len(self.failed)} failed{skipped}"


def artifacts(*command):
    """Builds, with cargo's messages for people on standard error; yields the executables."""
    command = ["cargo", *command, "--message-format=json-render-diagnostics"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{' '.join(command)} failed\n0 passed, 1 failed")
        sys.exit(1)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            yield message


def run(command, seconds, env, folder):
    """Runs a command in a process group of its own. Gives its status (None: the time was up), time and output."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace", dir=folder) as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
        )
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)  # also what a test left running
            except ProcessLookupError:
                pass
            child.wait()
        output.seek(0)
        return status, time.monotonic() - started, output.read()


def clear_cgroups(bed):
    for folder, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
        if bed in folder:
            try:
                os.rmdir(folder)
            except OSError:
                pass


class Binary:
    def __init__(self, message):
        self.path = message["executable"]
        self.unit = "test" not in message["target"]["kind"]
        kind = message["target"]["kind"][0]
        self.name = message["target"]["name"] + ("" if kind in ("lib", "test") else f"({kind})")

    def tests(self):
        listed = subprocess.run([self.path, "--list", "--format=terse"], capture_output=True, text=True, check=True)
        return re.findall(r"^(.+): test$", listed.stdout, re.MULTILINE)

    def run(self, test, options, tally):
        name = f"{self.name}::{test}"
        bed = f"crfs-bed-{os.getpid()}-{abs(hash(name)) % 1_000_000}"
        command = [self.path, "--exact", test, "--nocapture", "--test-threads=1"]
        if not self.unit:
            command.insert(0, os.path.join(BED, "pen.sh"))
        limit = LONG_LIMIT if options.long else UNIT_LIMIT if self.unit else NODE_LIMIT
        folder = tempfile.mkdtemp(prefix="crfs-")
        os.chmod(folder, 0o755)  # some tests read as another user
        try:
            env = {**os.environ, **options.env, "TMPDIR": folder, "CRFS_BED_ID": bed}
            status, seconds, output = run(command, limit, env, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if not self.unit:
                clear_cgroups(bed)
        skipped = re.search(r"^(?:test .* \.\.\. )?skipped: (.*)", output, re.MULTILINE)
        if status is None:
            tally.fail(name, seconds, f"not done after {limit} s", output)
        elif status:
            tally.fail(name, seconds, f"status {status}", output)
        elif skipped:
            tally.skip(name, skipped[1].strip())
        elif re.search(r"^test result: ok\. 1 passed", output, re.MULTILINE):
            tally.ok(name, seconds)
        elif " ... ignored" in output:
            tally.skip(name, "ignored")
        else:
            tally.fail(name, seconds, "did not run", output)


def conformance(options, tally):
    """containerd's own suite against this build."""
    if not options.wants("conformance"):
        return
    if os.environ.get("CRFS_NO_GO"):
        tally.skip("conformance", "Go is missing or older than integration/conformance/go.mod asks for")
        return
    command = [os.path.join(CONFORMANCE, "run.sh"), "overlayfs", "--", options.env["CRFS_BIN"], "serve"]
    command += ["--root", "{root}", "--address", "{socket}"]
    env = {**os.environ, "CONFORMANCE_STRICT": "1"}
    status, seconds, output = run(command, SUITE_LIMIT, env, None)
    parts = re.findall(r"^(PASS|FAIL|SKIP)[^\n]*? (\S+) \(([\d.]+)s\)\n((?: {5}.*\n)*)", output, re.MULTILINE)
    for word, name, took, detail in parts:
        name = "conformance::" + name.rsplit("/", 1)[-1]
        if word == "PASS":
            tally.ok(name, float(took))
        elif word == "SKIP":
            tally.skip(name, "by the suite")
        else:
            tally.fail(name, float(took), "the suite is not satisfied", detail)
    if not parts or (status != 0 and not any(p[0] == "FAIL" for p in parts)):
        tally.fail("conformance", seconds, f"status {status}", output)


def doctests(options, tally):
    """The examples in the documentation."""
    if not options.wants("doc::"):
        return
    status, seconds, output = run(["cargo", "test", "--release", "--doc"], SUITE_LIMIT, None, None)
    results = re.findall(r"^test (src/\S+.*) \.\.\. (ok|FAILED|ignored)$", output, re.MULTILINE)
    for name, word in results:
        if word == "ok":
            tally.ok(f"doc::{name}", 0)
        elif word == "ignored":
            tally.skip(f"doc::{name}", "ignored")
    if status != 0:
        tally.fail("doc::", seconds, f"status {status}", output)


class Options:
    def __init__(self):
        args = argparse.ArgumentParser()
        args.add_argument("--long", action="store_true")
        args.add_argument("filter", nargs="*")
        args = args.parse_args()
        self.long, self.filter = args.long, args.filter
        root = os.getcwd()
        self.env = {"CARGO_MANIFEST_DIR": root, "RUST_BACKTRACE": "1"}
        if self.long:
            self.env["CRFS_LONG"] = "1"

    def wants(self, name):
        return not self.filter or any(word in name for word in self.filter)


def section(title):
    print(f"\n== {title}", flush=True)


def main():
    options, tally = Options(), Tally()
    section("Build")
    # One command: the library and its unit tests are compiled side by side.
    built = list(artifacts("test", "--release", "--no-run"))
    binaries = [Binary(m) for m in built if m["profile"]["test"]]
    options.env["CRFS_BIN"] = next(m["executable"] for m in built if m["target"]["kind"] == ["bin"] and not m["profile"]["test"])

    section("Unit tests")
    units = [(b, t) for b in binaries if b.unit for t in b.tests() if options.wants(f"{b.name}::{t}")]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(b.run, t, options, tally) for b, t in units]:
            done.result()
    doctests(options, tally)

    section("Tests on a real node")
    for binary in sorted((b for b in binaries if not b.unit), key=lambda b: b.name != "tidy"):
        for test in binary.tests():
            if options.wants(f"{binary.name}::{test}"):
                binary.run(test, options, tally)

    section("containerd's conformance suite")
    conformance(options, tally)

    section("Result")
    for name in tally.failed:
        print(f"failed: {name}")
    if not tally.passed and not tally.failed:
        tally.fail("every test", 0, "no test ran", "")
    print(tally.line())
    sys.exit(bool(tally.failed))


if __name__ == "__main__":
    main()
