"""A door before the registry: bearer tokens of a short life, for those who know a password.

    POST /_relay/guard    {"life": 5, "logins": {"user:password": "prefix of repositories"}, "public": ["prefix"]}
    POST /_relay/guard    {}          the door is open again; so it is at first

Every setting makes the tokens of the one before worthless. `/_relay/counts` has "tokens", how many were given out, and
"turned_away", how many requests came with a token that was not good (any more).
"""

import base64
import json
import re
import secrets
import threading
import time
from urllib.parse import parse_qs, urlsplit

REPOSITORY = re.compile(r"^/v2/(.+?)/(?:manifests|blobs|tags|referrers)/")
SCOPE = re.compile(r"^repository:([^:]+):")


class Guard:
    def __init__(self):
        self.lock = threading.Lock()
        self.set({})
        self.reset()

    def set(self, said):
        with self.lock:
            self.is_on = "logins" in said
            self.life, self.public = said.get("life", 300), said.get("public", [])
            self.logins = {
                "Basic " + base64.b64encode(login.encode()).decode(): prefix
                for login, prefix in said.get("logins", {}).items()
            }
            self.good = {}

    def reset(self):
        with self.lock:
            self.tokens = self.turned_away = 0

    def report(self):
        with self.lock:
            return {"tokens": self.tokens, "turned_away": self.turned_away}

    def answer(self, request):
        """(status, headers, body) for a request that does not pass; None for one that does."""
        with self.lock:
            if not self.is_on:
                return None
            url = urlsplit(request.path)
            shown = request.headers.get("Authorization", "")
            if url.path == "/token":
                return self.give(request.command, parse_qs(url.query), shown)
            asked = REPOSITORY.match(url.path)
            repository = asked[1] if asked else ""
            if any(repository.startswith(prefix) for prefix in self.public):
                return None
            allowed, end = self.good.get(shown.removeprefix("Bearer "), (None, 0))
            if end > time.monotonic() and repository.startswith(allowed):
                return None
            self.turned_away += shown.startswith("Bearer ")
            realm = f"http://{request.headers.get('Host')}/token"
            challenge = f'Bearer realm="{realm}",service="bed",scope="repository:{repository}:pull"'
            return 401, {"WWW-Authenticate": challenge}, b"{}"

    def give(self, method, query, shown):
        if method != "GET":
            return 404, {}, b"{}"
        scope = SCOPE.match(query.get("scope", [""])[0])
        prefix = self.logins.get(shown)
        if prefix is None or not (scope and scope[1].startswith(prefix)):
            return 401, {}, b"{}"
        token = secrets.token_hex(16)
        self.good[token] = prefix, time.monotonic() + self.life
        self.tokens += 1
        body = json.dumps({"token": token, "expires_in": self.life})
        return 200, {"Content-Type": "application/json"}, body.encode()
