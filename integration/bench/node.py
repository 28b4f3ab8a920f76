"""The parts of a measurement that run: a registry behind a link, and nodes that have seen nothing yet."""

import json
import os
import subprocess
import urllib.request

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

    def __init__(self, folder, *options):
        self.folder, self.values = folder, {}
        os.makedirs(folder, exist_ok=True)
        self.log = open(os.path.join(folder, "up.log"), "w", encoding="utf-8")
        self.script = subprocess.Popen(
            [os.path.join(BED, "up.sh"), folder, *options],
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


class Registry(Script):
    """A docker-registry, and the link before it."""

    def __init__(self, folder):
        super().__init__(folder, "--only", "registry")
        self.address = self.values["REGISTRY"]

    def push(self, layout, name):
        run([self.values["PYTHON"], os.path.join(BED, "push.py"), f"{layout}:latest", f"{self.values['REGISTRY_DIRECT']}/{name}"])

    def convert(self, crfs, layout, name, prefetch=None):
        """Converts an image into the registry, without the link."""
        command = [crfs, "convert", f"oci:{layout}:latest", f"docker://{self.values['REGISTRY_DIRECT']}/{name}"]
        run(command + (["--prefetch", prefetch] if prefetch else []))

    def link(self, rtt_ms, mbit):
        self.control(f"link?rtt_ms={rtt_ms}&mbit={mbit}")

    def counts(self):
        """Bytes of answers and requests since the last reset."""
        counts = self.control("counts", "GET")
        return counts["total"], counts["requests"]

    def reset(self):
        self.control("reset")

    def control(self, verb, method="POST"):
        request = urllib.request.Request(f"http://{self.address}/_relay/{verb}", method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return json.load(answer)


class Node(Script):
    """A fresh containerd and a fresh crfs."""

    def __init__(self, folder, config, crfs=True):
        os.makedirs(os.path.join(folder, "node"))
        with open(os.path.join(folder, "node", "crfs.toml"), "w", encoding="utf-8") as file:
            file.write(config)
        super().__init__(folder, "--only", "node", *([] if crfs else ["--no-crfs"]))
        self.containers = 0

    def ctr(self, *words):
        return run([self.values["CTR"], *words])

    def start(self, snapshotter, image, command):
        """The command of `ctr` that runs a container and its output; each has a name of its own."""
        self.containers += 1
        name = f"{self.values['NAMESPACE']}-{self.containers}"
        return [self.values["CTR"], "run", "--rm", "--snapshotter", snapshotter, image, name, *command]
