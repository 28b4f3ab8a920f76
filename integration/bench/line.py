#!/usr/bin/python3
"""A line between two network namespaces: so long a way, so many bits a second in each direction.

    line.py --rtt-ms N --mbit N        prints FAR=PID: /proc/PID/ns/net is the far side. Ends with its standard input.

The near side, where this is started, has the address 10.77.0.1, the far side 10.77.0.2. Packets cross by two TUN devices,
with up to 64 KiB each (the kernel's segmentation offload), so that a Gbit/s costs about two thousand reads and writes a
second and not a copy of every 1,500 bytes. TCP on both sides is the kernel's own: handshakes, slow start, windows and losses
happen as they do on a real line. What the line cannot send at once waits in a queue as long as two round trips (and at
least 1,000 full packets); what finds it full is lost.

Lines on standard input: `set RTT_MS MBIT` (0 0 is no limit), `counts`; each is answered with one line.
"""

import argparse
import collections
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x1000, 0x4000
CHECKSUM, SEGMENTS_4, SEGMENTS_6 = 1, 2, 4
HEADER = 10  # struct virtio_net_hdr, before each packet
LARGEST = HEADER + 65535 + 64
LEAST_QUEUE = 1000 * 1500


def device(name, address):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETOFFLOAD, CHECKSUM | SEGMENTS_4 | SEGMENTS_6)
    for command in (f"address add {address}/24 dev {name}", f"link set {name} up txqueuelen 4000", "link set lo up"):
        subprocess.run(["ip", *command.split()], check=True)
    return fd


class Direction:
    """One direction: what was sent into it and has not arrived."""

    def __init__(self, source, target):
        self.source, self.target = source, target
        self.waiting, self.free_at = collections.deque(), 0.0
        self.bytes = self.lost = 0

    def set(self, rtt_ms, mbit):
        self.delay = rtt_ms / 2000
        self.per_byte = 8 / (mbit * 1e6) if mbit else 0.0
        self.longest = max(LEAST_QUEUE * self.per_byte, 2 * rtt_ms / 1000)

    def take(self):
        """Everything that has been sent by now."""
        while True:
            try:
                packet = os.read(self.source, LARGEST)
            except BlockingIOError:
                return
            now = time.monotonic()
            start = max(now, self.free_at)
            if start - now > self.longest:
                self.lost += 1
                continue
            size = len(packet) - HEADER
            self.bytes += size
            self.free_at = start + size * self.per_byte
            self.waiting.append((self.free_at + self.delay, packet))

    def give(self):
        """Everything that has arrived by now. Gives the time until the next will."""
        while self.waiting:
            left = self.waiting[0][0] - time.monotonic()
            if left > 0:
                return left
            packet = self.waiting.popleft()[1]
            try:
                os.write(self.target, packet)
            except OSError:
                self.lost += 1  # the receiver's side is full or being taken down
        return None


def serve(there, back):
    commands = bytearray()
    while True:
        ahead = [left for left in (there.give(), back.give()) if left is not None]
        ready, _, _ = select.select([there.source, back.source, 0], [], [], min(ahead, default=None))
        for direction in (there, back):
            if direction.source in ready:
                direction.take()
        if 0 in ready:
            piece = os.read(0, 4096)
            if not piece:
                return
            commands += piece
            while b"\n" in commands:
                line, _, commands = commands.partition(b"\n")
                words = line.decode().split()
                if words[0] == "set":
                    for direction in (there, back):
                        direction.set(float(words[1]), float(words[2]))
                print(f"THERE={there.bytes} BACK={back.bytes} LOST={there.lost + back.lost}", flush=True)


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--rtt-ms", type=float, default=0)
    args.add_argument("--mbit", type=float, default=0)
    args = args.parse_args()
    near = device("near", "10.77.0.1")
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        sys.exit(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}")
    far = device("far", "10.77.0.2")
    there, back = Direction(near, far), Direction(far, near)
    for direction in (there, back):
        direction.set(args.rtt_ms, args.mbit)
    print(f"FAR={os.getpid()}", flush=True)
    serve(there, back)


if __name__ == "__main__":
    main()
