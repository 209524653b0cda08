"""A stand-in for the hub: the parts of its API that uploads and downloads of a model call."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "a-token-of-a-test"


class Hub:
    """Repositories by name: each a list of commits, the newest last; a commit is its revision and its files."""

    def __init__(self):
        self.repositories, self.requests = {}, []

    def files(self, name, revision):
        """The revision and the files of a commit by "main", its revision or the beginning of it; None without one."""
        commits = self.repositories[name]
        found = commits[-1:] if revision == "main" else [c for c in commits if c[0].startswith(revision)]
        return found[-1] if found else None


@contextmanager
def serve(hub):
    """Serve a hub; the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, body=b"", status=200, **headers):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self, what):
            self.answer({"error": f"{what} not found"}, 404, X_Error_Code=f"{what}NotFound")

        def handle_request(self):
            path = unquote(urlsplit(self.path).path).strip("/")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append((self.command, path))
            parts = path.split("/")
            if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid username or password."}, 401)
            if path == "api/repos/create":
                about = json.loads(body)
                name = f"{about['organization']}/{about['name']}"
                hub.repositories.setdefault(name, [])
                return self.answer({"url": f"{address}/{name}", "name": name, "id": name})
            if path == "api/validate-yaml":
                yaml.safe_load(json.loads(body)["content"].split("---")[1])
                return self.answer({"warnings": [], "errors": []})
            if parts[:2] == ["api", "models"] and len(parts) >= 5:
                return self.of_model("/".join(parts[2:4]), parts[4], "/".join(parts[5:]), body)
            if len(parts) >= 5 and parts[2] == "resolve":
                return self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            return self.missing("Entry")

        def of_model(self, name, action, revision, body):
            if name not in hub.repositories:
                return self.missing("Repo")
            if action == "preupload":
                paths = [file["path"] for file in json.loads(body)["files"]]
                return self.answer(
                    {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
                )
            if action == "commit":
                lines = [json.loads(line) for line in body.splitlines()]
                new = {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}
                before = hub.files(name, "main")
                sha = hashlib.sha1(body).hexdigest()
                hub.repositories[name].append((sha, {**(before[1] if before else {}), **new}))
                return self.answer({"commitUrl": f"{address}/{name}/commit/{sha}", "commitOid": sha})
            found = hub.files(name, revision)
            if found is None:
                return self.missing("Revision")
            sha, files = found
            if action == "revision":
                return self.answer({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})
            return self.answer(
                [
                    {"type": "file", "path": p, "size": len(x), "oid": hashlib.sha1(x).hexdigest()}
                    for p, x in files.items()
                ]
            )

        def file(self, name, revision, path):
            found = hub.files(name, revision)
            if found is None or path not in found[1]:
                return self.missing("Entry")
            etag = hashlib.sha1(found[1][path]).hexdigest()
            return self.answer(found[1][path], ETag=f'"{etag}"', X_Repo_Commit=found[0])

        do_GET = do_POST = do_HEAD = handle_request

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
