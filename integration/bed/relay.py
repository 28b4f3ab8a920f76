#!/usr/bin/python3
"""A counting relay in front of a registry: what crossed it is what left the registry.

    relay.py UPSTREAM_HOST:PORT --log FILE [--rtt-ms N] [--mbit N]

Prints `PORT=N` once it listens on a free loopback port, then serves until it is ended. Every byte of a
response body is counted as it is sent, per blob, so a number read while a transfer runs is right too.
It can also behave like a distant registry: a delay for every new connection and every request, within which the
registry does its work and this program its own, and one shared link of limited speed. A test talks to it on the same port:

    GET  /_relay/counts              {"total": N, "requests": N, "blobs": {digest: N}, "manifests": N}
    POST /_relay/reset               set every count to zero
    POST /_relay/link?rtt_ms=10&mbit=1000      0 takes a limit away
    POST /_relay/fail?status=503&count=4       the next 4 requests are answered so; status=0 hangs up
    POST /_relay/fail?status=503&count=4&ranges=1     the same, but only requests for a range
    POST /_relay/whole?on=1          ranges are ignored, until on=0: all of a blob is sent to whoever asks for a part
    POST /_relay/guard               who may read what, by short-lived tokens: see guard.py
    POST /_relay/down?on=1           every connection is closed unanswered, until on=0

One line of JSON per finished request goes to the log.
"""

import argparse
import http.client
import http.server
import json
import re
import socket
import sys
import threading
import time
from urllib.parse import parse_qs, urlsplit

import guard

PIECE = 64 * 1024
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
BLOB = re.compile(r"/blobs/(sha(?:256|512):[0-9a-f]+)$")


class Link:
    """The simulated line: delay per round trip, one speed limit for all connections together."""

    def __init__(self, rtt_ms, mbit):
        self.lock = threading.Lock()
        self.set(rtt_ms, mbit)
        self.free_at = 0.0

    def set(self, rtt_ms, mbit):
        self.rtt = rtt_ms / 1000
        self.bytes_per_second = mbit * 1_000_000 / 8

    def due(self):
        """When an answer to what was asked now is there."""
        return time.monotonic() + self.rtt

    @staticmethod
    def wait(due):
        delay = due - time.monotonic()
        if delay > 0:
            time.sleep(delay)

    def carry(self, size):
        """Waits until the line has room for `size` more bytes."""
        if not self.bytes_per_second:
            return
        with self.lock:
            start = max(time.monotonic(), self.free_at)
            self.free_at = start + size / self.bytes_per_second
        delay = start - time.monotonic()
        if delay > 0.002:  # shorter sleeps cost more than they model
            time.sleep(delay)


class Counts:
    def __init__(self):
        self.lock = threading.Lock()
        self.reset()

    def reset(self):
        with self.lock:
            self.total = self.requests = self.manifests = 0
            self.blobs = {}

    def request(self):
        with self.lock:
            self.requests += 1

    def add(self, path, size):
        blob = BLOB.search(path)
        with self.lock:
            self.total += size
            if blob:
                self.blobs[blob[1]] = self.blobs.get(blob[1], 0) + size
            elif "/manifests/" in path:
                self.manifests += size

    def report(self):
        with self.lock:
            return {
                "total": self.total,
                "requests": self.requests,
                "manifests": self.manifests,
                "blobs": dict(self.blobs),
            }


class Faults:
    """Failures asked for by a test."""

    def __init__(self):
        self.lock = threading.Lock()
        self.down = False
        self.status = 0
        self.left = 0
        self.ranges = False
        self.whole = False

    def fail(self, status, count, ranges):
        with self.lock:
            self.status, self.left, self.ranges = status, count, ranges

    def next(self, is_range):
        """The status to answer this request with: None is none of ours, 0 is to hang up."""
        with self.lock:
            if self.down:
                return 0
            if self.left == 0 or (self.ranges and not is_range):
                return None
            self.left -= 1
            return self.status


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.upstream = http.client.HTTPConnection(self.server.upstream, timeout=300)
        self.server.link.wait(self.server.link.due())

    def finish(self):
        self.upstream.close()
        try:
            super().finish()
        except OSError:
            pass  # the client has gone: nothing to flush to

    def log_message(self, *_):
        pass

    def relay(self):
        if self.path.startswith("/_relay/"):
            return self.control()
        started = time.monotonic()
        self.server.counts.request()
        due = self.server.link.due()
        self.sent = 0
        status = self.server.faults.next("Range" in self.headers)
        try:
            refusal = self.server.guard.answer(self) if status is None else None
            if status is not None or refusal:
                self.server.link.wait(due)
            if refusal:
                status = refusal[0]
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(status, refusal[2], refusal[1])
            elif status is None:
                status = self.pass_on(due)
            elif status == 0:
                self.close_connection = True
            else:
                self.answer(status, b"asked for by a test\n")
        except (OSError, http.client.HTTPException) as trouble:
            status = status or 0
            self.close_connection = True
            self.server.note(self, status, started, str(trouble))
            return
        self.server.note(self, status, started, None)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = relay

    def pass_on(self, due):
        kept_back = HOP_BY_HOP | {"range"} if self.server.faults.whole else HOP_BY_HOP
        headers = {k: v for k, v in self.headers.items() if k.lower() not in kept_back}
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
            body = self.chunks()
        else:
            body = self.body(int(self.headers.get("Content-Length", 0)))
        if body is None:
            headers.pop("Content-Length", None)
        self.upstream.request(
            self.command, self.path, body=body, headers=headers, encode_chunked=chunked
        )
        response = self.upstream.getresponse()
        self.server.link.wait(due)
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if self.command == "HEAD":
            self.end_headers()
            response.read()
        elif response.getheader("Content-Length") is None and response.status not in (204, 304):
            body = response.read()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.send(body)
        else:
            self.end_headers()
            self.stream(response)
        return response.status

    def stream(self, response):
        piece = bytearray(PIECE)
        view = memoryview(piece)
        while size := response.readinto(piece):
            self.send(view[:size])

    def send(self, data):
        self.server.link.carry(len(data))
        self.wfile.write(data)
        self.sent += len(data)
        self.server.counts.add(urlsplit(self.path).path, len(data))

    def body(self, size):
        if size == 0 and self.command in ("GET", "HEAD", "DELETE"):
            return None
        return self.pieces(size) if size else b""

    def pieces(self, size):
        while size:
            piece = self.rfile.read(min(size, PIECE))
            if not piece:
                raise ConnectionError("the client ended its request early")
            size -= len(piece)
            yield piece

    def chunks(self):
        while True:
            size = int(self.rfile.readline().split(b";")[0], 16)
            yield from self.pieces(size)
            self.rfile.readline()
            if size == 0:
                return

    def answer(self, status, body, headers=None):
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def control(self):
        url = urlsplit(self.path)
        asked = {k: float(v[0]) for k, v in parse_qs(url.query).items()}
        verb = url.path.removeprefix("/_relay/")
        if verb == "reset":
            self.server.counts.reset()
            self.server.guard.reset()
        elif verb == "guard":
            size = int(self.headers.get("Content-Length", 0))
            self.server.guard.set(json.loads(self.rfile.read(size) or b"{}"))
        elif verb == "link":
            self.server.link.set(asked.get("rtt_ms", 0), asked.get("mbit", 0))
        elif verb == "fail":
            count, ranges = int(asked.get("count", 1)), bool(asked.get("ranges", 0))
            self.server.faults.fail(int(asked.get("status", 503)), count, ranges)
        elif verb == "down":
            self.server.faults.down = bool(asked.get("on", 1))
        elif verb == "whole":
            self.server.faults.whole = bool(asked.get("on", 1))
        elif verb != "counts":
            return self.answer(404, b"no such control\n")
        report = {**self.server.counts.report(), **self.server.guard.report()}
        self.answer(200, json.dumps(report).encode() + b"\n")


class Relay(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, upstream, log, link):
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.log, self.link = upstream, log, link
        self.counts, self.faults, self.guard = Counts(), Faults(), guard.Guard()
        self.log_lock = threading.Lock()

    def note(self, request, status, started, trouble):
        line = {
            "at": round(time.time(), 3),
            "ms": round((time.monotonic() - started) * 1000, 1),
            "method": request.command,
            "path": request.path,
            "range": request.headers.get("Range"),
            "status": status,
            "bytes": request.sent,
        }
        if trouble:
            line["trouble"] = trouble
        with self.log_lock:
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, socket.timeout)):
            super().handle_error(request, client_address)


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("upstream", metavar="HOST:PORT")
    args.add_argument("--log", required=True)
    args.add_argument("--rtt-ms", type=float, default=0)
    args.add_argument("--mbit", type=float, default=0)
    args = args.parse_args()
    with open(args.log, "a", encoding="utf-8") as log:
        relay = Relay(args.upstream, log, Link(args.rtt_ms, args.mbit))
        print(f"PORT={relay.server_address[1]}", flush=True)
        relay.serve_forever()


if __name__ == "__main__":
    main()
