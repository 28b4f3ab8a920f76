"""The parts of a measurement that run: a registry behind a link, and nodes that have seen nothing yet."""

import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
BED = os.path.join(os.path.dirname(HERE), "bed")


class Failed(Exception):
    """A step of the measurement did not work; the text says which, and how it ended."""


def run(command, seconds=600):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


class Script:
    """bed/up.sh: its values, and the end of all that it started when this is closed."""

    def __init__(self, folder, *options, inside=()):
        self.folder, self.values = folder, {}
        os.makedirs(folder, exist_ok=True)
        self.log = open(os.path.join(folder, "up.log"), "w", encoding="utf-8")
        self.script = subprocess.Popen(
            [*inside, os.path.join(BED, "up.sh"), folder, *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        self.until("READY")

    def until(self, last):
        for line in self.script.stdout:
            key, _, value = line.strip().partition("=")
            if key == "FAILED":
                break
            if key == last:
                return
            self.values[key] = value
        with open(self.log.name, encoding="utf-8") as log:
            raise Failed(f"{' '.join(self.script.args)}: not {last}\n{log.read()[-2000:]}")

    def tell(self, command):
        self.script.stdin.write(command + "\n")
        self.script.stdin.flush()
        self.until("OK")

    def close(self):
        self.script.stdin.close()
        self.script.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Line:
    """line.py: the link between this network namespace and the far one."""

    def __init__(self):
        self.line = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "line.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        first = self.line.stdout.readline()
        if not first.startswith("FAR="):
            raise Failed("the simulated link does not start")
        self.far = f"/proc/{first.strip().removeprefix('FAR=')}/ns/net"

    def tell(self, words):
        self.line.stdin.write(words + "\n")
        self.line.stdin.flush()
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", self.line.stdout.readline())}

    def close(self):
        self.line.stdin.close()
        self.line.wait()


class Registry(Script):
    """A docker-registry at the far end of a line."""

    def __init__(self, folder):
        self.line, self.base = Line(), (0, 0)
        enter = "nsenter", f"--net={self.line.far}", "--"
        super().__init__(folder, "--only", "registry", "--listen", "10.77.0.2", inside=enter)
        self.address = self.values["REGISTRY_DIRECT"]

    def close(self):
        super().close()
        self.line.close()

    def push(self, layout, name, tag="latest"):
        run([self.values["PYTHON"], os.path.join(BED, "push.py"), f"{layout}:{tag}", f"{self.address}/{name}"])

    def convert(self, crfs, layout, name, prefetch=None):
        command = [crfs, "convert", "--plain-http", self.address, f"oci:{layout}:latest", f"docker://{self.address}/{name}"]
        run(command + (["--prefetch", prefetch] if prefetch else []))

    def link(self, rtt_ms, mbit):
        self.line.tell(f"set {rtt_ms} {mbit}")

    def now(self):
        with open(self.values["REGISTRY_OUTPUT"], "rb") as log:
            requests = log.read().count(b'msg="response completed"')
        return self.line.tell("counts")["BACK"], requests

    def reset(self):
        self.base = self.now()

    def counts(self):
        """Bytes that crossed the line towards the node, and requests answered, since the last reset."""
        return tuple(now - base for now, base in zip(self.now(), self.base))


class Node(Script):
    """A fresh containerd and a fresh crfs, or another snapshotter in its place: `server` is the command of that."""

    def __init__(self, folder, config, crfs=True, profiles=None, server=""):
        os.makedirs(os.path.join(folder, "node"), exist_ok=True)
        if profiles:
            shutil.copytree(profiles, os.path.join(folder, "node", "crfs", "profiles"))
        with open(os.path.join(folder, "node", "crfs.toml"), "w", encoding="utf-8") as file:
            file.write(config)
            if crfs and not server:
                file.write(f'\n[containerd]\naddress = "{folder}/node/containerd.sock"\n')
        options = ["--server", server] if server else [] if crfs else ["--no-crfs"]
        super().__init__(folder, "--only", "node", *options)
        self.containers = 0

    def ctr(self, *words):
        return run([self.values["CTR"], *words])

    def start(self, snapshotter, image, command):
        """The command of `ctr` that runs a container and its output; each has a name of its own."""
        self.containers += 1
        name = f"{self.values['NAMESPACE']}-{self.containers}"
        return [self.values["CTR"], "run", "--rm", "--snapshotter", snapshotter, image, name, *command]
