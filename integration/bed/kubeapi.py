#!/usr/bin/python3
"""A stand-in for a Kubernetes API server that only knows pull secrets, over TLS, for who has a client certificate.

    kubeapi.py FOLDER

Makes a CA, a server's and a client's certificate in FOLDER, FOLDER/kubeconfig with the client's, and FOLDER/by-program, by
which a program has it. Prints `READY=1` and
serves until it is ended: FOLDER/secrets.json, {"name": {docker config}}, read for every request, one secret a page. One line
for each request goes to FOLDER/log: the method, the path, and who asked.
"""

import base64
import http.server
import json
import os
import ssl
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: bed
clusters:
- name: bed
  cluster:
    server: https://127.0.0.1:{port}
    certificate-authority: ca.pem
contexts:
- name: bed
  context: {{cluster: bed, user: crfs}}
users:
- name: crfs
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"""


# Another kubeconfig, whose user is a program that has the certificate.
PROGRAM = """\
    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: ./login
      interactiveMode: Never
"""


def write_program():
    status = {}
    for key, name in ("clientCertificateData", "client.pem"), ("clientKeyData", "client.key"):
        with open(name, encoding="utf-8") as file:
            status[key] = file.read()
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    with open("login", "w", encoding="utf-8") as file:
        file.write("#!/bin/sh\ncat <<'JSON'\n" + json.dumps(answer) + "\nJSON\n")
    os.chmod("login", 0o700)


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def certificates():
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=bed ca", "-days", "2")
    for name, usage in ("server", "serverAuth"), ("client", "clientAuth"):
        with open(f"{name}.ext", "w", encoding="utf-8") as ext:
            ext.write(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN=bed {name}")
        sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *sign)


def encoded(path):
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def any(self):
        who = dict(part[0] for part in self.connection.getpeercert()["subject"])["commonName"]
        with open("log", "a", encoding="utf-8") as log:
            log.write(f"{self.command} {self.path} {who}\n")
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        fits = query.get("fieldSelector") == ["type=kubernetes.io/dockerconfigjson"]
        if self.command != "GET" or url.path != "/api/v1/secrets" or not fits:
            return self.answer(403, {"kind": "Status", "status": "Failure"})
        with open("secrets.json", encoding="utf-8") as file:
            secrets = sorted(json.load(file).items())
        at = int(query.get("continue", ["0"])[0])
        items = [
            {
                "metadata": {"name": name, "namespace": "default"},
                "type": "kubernetes.io/dockerconfigjson",
                "data": {".dockerconfigjson": base64.b64encode(json.dumps(config).encode()).decode()},
            }
            for name, config in secrets[at : at + 1]
        ]
        more = str(at + 1) if at + 1 < len(secrets) else ""
        self.answer(200, {"kind": "SecretList", "metadata": {"continue": more}, "items": items})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = any

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    os.makedirs(sys.argv[1], exist_ok=True)
    os.chdir(sys.argv[1])
    certificates()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("server.pem", "server.key")
    context.load_verify_locations("ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    text = KUBECONFIG.format(
        port=server.server_address[1], certificate=encoded("client.pem"), key=encoded("client.key")
    )
    with open("kubeconfig", "w", encoding="utf-8") as file:
        file.write(text)
    with open("by-program", "w", encoding="utf-8") as file:
        file.write(text[: text.index("    client-certificate-data")] + PROGRAM)
    write_program()
    print("READY=1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
