"""The part of the Hugging Face Hub's API that making a Space calls, as a local HTTP server."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Hub(ThreadingHTTPServer):
    """Keeps what it was sent.

    Attributes:
        files: Path in the Space -> bytes; by way of LFS where the client was told so.
        calls: (method, path) in order.
        created: Bodies of the calls that create a repository, the same for machines and variables.
        role, name: What whoami says of the token.
        refuse: Part of a path -> the code that it answers.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.lfs, self.blobs, self.calls = {}, set(), {}, []
        self.created, self.machines, self.variables = [], [], {}
        self.role, self.name, self.refuse = "write", "me", {}
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, code=200):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self):
        hub, path = self.server, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.calls.append((self.command, path))
        for part, code in hub.refuse.items():
            if part in path:
                return self.answer({"error": "refused by the test"}, code)
        if "/storage/" not in path and self.headers.get("Authorization") != "Bearer hf_test":
            return self.answer({"error": "Invalid credentials"}, 401)
        for pattern, method in ROUTES.items():
            if re.fullmatch(pattern, path):
                return method(self, hub, body)
        return self.answer({"error": f"no route {path}"}, 404)

    do_GET = do_POST = do_PUT = handle_any

    def whoami(self, hub, _):
        self.answer({"name": hub.name, "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": hub.role}}})

    def create(self, hub, body):
        known = bool(hub.created)
        hub.created.append(json.loads(body))
        owner, name = hub.created[-1]["organization"], hub.created[-1]["name"]
        self.answer({"url": f"{hub.address}/spaces/{owner}/{name}"}, 409 if known else 200)

    def validate(self, *_):
        self.answer({"errors": [], "warnings": []})

    def tree(self, hub, _):
        self.answer([{"type": "file", "path": p, "size": len(b), "oid": "0"} for p, b in hub.files.items()])

    def preupload(self, hub, body):
        """Binaries go by way of LFS, as on the Hub, where git refuses them."""
        answers = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if b"\0" in base64.b64decode(file["sample"]) else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
        self.answer({"files": answers})

    def batch(self, hub, body):
        objects = [
            {**o, "actions": {"upload": {"href": f"{hub.address}/storage/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, hub, body):
        hub.blobs[self.path.rsplit("/", 1)[1]] = body
        self.answer({})

    def commit(self, hub, body):
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                hub.files[value["path"]] = hub.blobs[value["oid"]]
                hub.lfs.add(value["path"])
            elif key == "deletedFile":
                del hub.files[value["path"]]
        address = f"{hub.address}/spaces/{self.path.split('/')[3]}/{self.path.split('/')[4]}/commit/{'0' * 40}"
        self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": address, "hookOutput": ""})

    def hardware(self, hub, body):
        hub.machines.append(json.loads(body)["flavor"])
        self.answer({"stage": "BUILDING", "hardware": {"current": None, "requested": hub.machines[-1]}})

    def variable(self, hub, body):
        value = json.loads(body)
        hub.variables[value["key"]] = value["value"]
        self.answer({})


ROUTES = {
    "/api/whoami-v2": Handler.whoami,
    "/api/repos/create": Handler.create,
    "/api/validate-yaml": Handler.validate,
    "/api/spaces/[^/]+/[^/]+/tree/main": Handler.tree,
    "/api/spaces/[^/]+/[^/]+/preupload/main": Handler.preupload,
    r"/spaces/[^/]+/[^/]+\.git/info/lfs/objects/batch": Handler.batch,
    "/storage/.*": Handler.store,
    "/api/spaces/[^/]+/[^/]+/commit/main": Handler.commit,
    "/api/spaces/[^/]+/[^/]+/hardware": Handler.hardware,
    "/api/spaces/[^/]+/[^/]+/variables": Handler.variable,
}
