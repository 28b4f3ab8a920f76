"""A node of the bed: a registry behind a simulated link, containerd, and crfs; fresh as often as one likes."""

import glob
import json
import os
import re
import subprocess
import time
import urllib.request

BED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bed")
TICK = os.sysconf("SC_CLK_TCK")


class Node:
    """Started once; `fresh` makes containerd and crfs forget everything."""

    def __init__(self, folder):
        self.values = {}
        self.folder = folder
        self.process = subprocess.Popen(
            [f"{BED}/up.sh", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.answer("READY")
        self.containers = 0

    def answer(self, end="OK"):
        for line in self.process.stdout:
            key, _, value = line.strip().partition("=")
            if key == end:
                return
            if key == "FAILED":
                raise SystemExit(f"the bed failed; its logs are in {self.folder}/node/logs")
            self.values[key] = value
        raise SystemExit(f"the bed ended; its logs are in {self.folder}")

    def say(self, command):
        self.process.stdin.write(command + "\n")
        self.answer()

    def fresh(self, config):
        with open(f"{self.folder}/node/crfs.toml", "w", encoding="utf-8") as file:
            file.write(config)
        self.say("fresh")
        os.sync()

    def close(self):
        self.process.stdin.close()
        self.process.wait(120)

    # -- the registry and the link

    def control(self, verb, method="POST"):
        url = f"http://{self.values['REGISTRY']}/_relay/{verb}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(url, method=method, data=b"" if method == "POST" else None)) as got:
            return json.load(got)

    def push(self, layout, name):
        to = f"{self.values['REGISTRY_DIRECT']}/bench/{name}"
        subprocess.run(["/usr/bin/python3", f"{BED}/push.py", f"{layout}:latest", to], check=True, stdout=subprocess.DEVNULL)

    def counts(self):
        return self.control("counts", "GET")

    def wait_idle(self):
        """Until nothing has left the registry for two seconds."""
        before = -1
        while (now := self.counts()["total"]) != before:
            before = now
            time.sleep(2)

    # -- containerd

    def ctr(self, *words, **options):
        done = subprocess.run(
            [self.values["CTR"], *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )
        if done.returncode:
            raise SystemExit(f"ctr {' '.join(words)}: {done.stdout[-2000:]}")
        return done.stdout

    def pull(self, snapshotter, image):
        self.ctr("image", "pull", "--plain-http", "--snapshotter", snapshotter, self.reference(image))

    def run(self, snapshotter, image, *command, detach=False):
        self.containers += 1
        name = f"bench-{os.getpid()}-{self.containers}"
        keep = ["--detach"] if detach else ["--rm"]
        out = self.ctr("run", *keep, "--snapshotter", snapshotter, self.reference(image), name, *command)
        return name if detach else out

    def remove(self, name):
        self.ctr("task", "rm", "--force", name)
        self.ctr("container", "rm", name)

    def root(self, name):
        """Where a running container's root lies for this process."""
        return glob.glob(f"{self.folder}/node/run/io.containerd.runtime.v2.task/*/{name}/rootfs")[0]

    def reference(self, image):
        return f"{self.values['REGISTRY']}/bench/{image}"

    # -- what crfs needed

    def server(self):
        try:
            with open(f"{self.values['CRFS_ROOT']}/server.pid", encoding="utf-8") as file:
                return int(file.read())
        except OSError:
            return int(self.values["CRFS_PID"])

    def memory(self):
        """Peak of resident memory, and anonymous memory now, in MB, of server and keeper together."""
        peak = anonymous = 0
        for pid in {self.server(), int(self.values["CRFS_PID"])}:
            with open(f"/proc/{pid}/status", encoding="utf-8") as file:
                status = file.read()
            peak += int(re.search(r"VmHWM:\s+(\d+)", status)[1])
            anonymous += int(re.search(r"RssAnon:\s+(\d+)", status)[1])
        return peak / 1024, anonymous / 1024

    def processor(self):
        """Seconds of the processor by kind of thread."""
        kinds = {"decode": "decode", "fuse": "fuse", "tokio": "network"}
        used = {}
        for path in glob.glob(f"/proc/{self.server()}/task/*/stat"):
            try:
                with open(path, encoding="utf-8") as file:
                    name, rest = re.match(r"\d+ \((.*)\) (.*)", file.read()).groups()
            except OSError:
                continue
            fields = rest.split()
            kind = next((kinds[start] for start in kinds if name.startswith(start)), "network and rest")
            used[kind] = used.get(kind, 0) + (int(fields[11]) + int(fields[12])) / TICK
        return used
