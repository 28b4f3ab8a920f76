"""Other lazy snapshotters, measured beside crfs: how each is started in its place, and which image it reads lazily.

Their programs are the operator's (`run.sh --peer NAME=PROGRAM`); nothing here fetches or builds one. Each runs with its own
defaults, background fetch included, and is told only where containerd is and that the registry speaks plain HTTP.
"""

import dataclasses
import os
import subprocess

import cold
from node import Failed, Node, run


@dataclasses.dataclass(frozen=True)
class Kind:
    """`mirror` is how its configuration spells the registry's address; `tags` the images it is measured with, `own` of them made by
    `tool`, which lies beside its program."""

    mirror: str
    tags: tuple
    own: str
    tool: str
    more: str = ""  # what else it has to be told; {containerd} is the socket of that
    needs_tool: bool = True  # whether there is nothing to measure without


KINDS = {
    # eStargz, as crfs reads it: of the layers with a landmark it fetches what lies before that first, too.
    "stargz": Kind("{}", ("lazy", "profiled", "stargz"), "stargz", "ctr-remote", needs_tool=False),
    # The ordinary layers and an index of them beside; those that have none it unpacks itself, out of containerd's store.
    "soci": Kind("http://{}", ("soci",), "soci", "soci", '[content_store]\n  containerd_address = "{containerd}"\n'),
}
SUFFIXES = {"lazy": "", "profiled": ", with profile", "stargz": ", image of its own", "soci": ""}


@dataclasses.dataclass(frozen=True)
class Peer:
    """One peer, as given on the command line."""

    name: str
    program: str

    @property
    def kind(self):
        return KINDS[self.name]

    def version(self):
        done = subprocess.run([self.program, "--version"], capture_output=True, text=True, timeout=20, check=False)
        return " ".join((done.stdout or done.stderr).split()) or "version unknown"

    def config(self, registry, folder):
        address = self.kind.mirror.format(registry.address)
        mirror = f'[[resolver.host."{registry.address}".mirrors]]\n  host = "{address}"\n  insecure = true\n'
        return mirror + self.kind.more.format(containerd=os.path.join(folder, "node", "containerd.sock"))

    def way(self, tag):
        command = f"{self.program} --config {{config}} --root {{root}} --address {{socket}}"
        return cold.Way(self.name + SUFFIXES[tag], "crfs", tag, server=command, settings=self.config)

    def ways(self, tags):
        """The ways of this peer for an image that has these tags of crfs's, and its own."""
        own = [self.kind.own] if self.tool() else []
        return [self.way(tag) for tag in self.kind.tags if tag in [*tags, *own]]

    def tool(self):
        """The program that makes its own images, if there is one."""
        tool = os.path.join(os.path.dirname(self.program), self.kind.tool)
        return tool if os.access(tool, os.X_OK) else None

    def publish(self, registry, image, layout, folder):
        """Makes and pushes the image in this peer's own form."""
        if not self.tool():
            return
        name = f"bench/{image.name}:{self.kind.own}"
        if self.name == "stargz":
            self.convert_in_containerd(f"{registry.address}/bench/{image.name}:plain", f"{registry.address}/{name}", folder)
            return
        os.makedirs(folder)
        made = os.path.join(folder, "made")
        convert = ["convert", "--standalone", "--format", "oci-dir", layout, made]
        run([self.tool(), "--root", os.path.join(folder, "root"), *convert])
        registry.push(made, name, tag="")  # it has one image, without a name

    def convert_in_containerd(self, source, target, folder):
        with Node(folder, "", crfs=False) as node:
            node.ctr("content", "fetch", "--plain-http", source)
            where = ["--address", node.values["CONTAINERD_SOCKET"], "--namespace", node.values["NAMESPACE"]]
            run([self.tool(), *where, "image", "convert", "--estargz", "--oci", source, target])
            node.ctr("image", "push", "--plain-http", target)


def parse(given):
    """`NAME=PROGRAM` of the command line."""
    name, _, program = given.partition("=")
    if name not in KINDS:
        raise Failed(f"no peer is called {name}: {', '.join(KINDS)} are known")
    if " " in program or not os.access(program, os.X_OK):
        raise Failed(f"{name}: {program} is not a program, or has a space in its path")
    peer = Peer(name, program)
    if peer.kind.needs_tool and not peer.tool():
        raise Failed(f"{name}: its images are made by `{peer.kind.tool}`, which is not beside {program}")
    return peer
