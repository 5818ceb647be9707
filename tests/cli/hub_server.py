"""The part of the Hugging Face Hub's API that is called here, for one repository, as a local HTTP server."""

import base64
import json
import re
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Keeps what it was sent.

    Attributes:
        files: Path in the repository -> bytes; by way of LFS where the client was told so.
        calls: (method, path) in order.
        tokens: Those that came with the calls.
        token: The one that is known.
        created: Bodies of the calls that create a repository, the same for machines and variables.
        role, name: What whoami says of the token.
        refuse: Part of a path -> the code that it answers.
        gated: Whether conditions must be accepted before files are read.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.lfs, self.blobs, self.calls = {}, set(), {}, []
        self.token, self.tokens, self.gated = "hf_test", set(), False
        self.created, self.machines, self.variables = [], [], {}
        self.role, self.name, self.refuse = "write", "me", {}
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, code=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_any(self):
        hub, path = self.server, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.calls.append((self.command, path))
        for part, code in hub.refuse.items():
            if part in path:
                return self.answer({"error": "refused by the test"}, code)
        if "/storage/" not in path:
            hub.tokens.add((self.headers.get("Authorization") or "").removeprefix("Bearer "))
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer({"error": "Invalid credentials"}, 401)
        for pattern, method in ROUTES.items():
            if re.fullmatch(pattern, path):
                return method(self, hub, body)
        return self.answer({"error": f"no route {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def whoami(self, hub, _):
        self.answer({"name": hub.name, "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": hub.role}}})

    def create(self, hub, body):
        known = bool(hub.created)
        hub.created.append(json.loads(body))
        owner, name, kind = (hub.created[-1].get(key) for key in ("organization", "name", "type"))
        place = {"space": "spaces/", "dataset": "datasets/"}.get(kind, "")
        self.answer({"url": f"{hub.address}/{place}{owner}/{name}", "error": "it is there"}, 409 if known else 200)

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
        kind, owner, name = self.path.split("/")[2:5]
        address = f"{hub.address}/{'' if kind == 'models' else kind + '/'}{owner}/{name}/commit/{COMMIT}"
        self.answer({"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""})

    def hardware(self, hub, body):
        hub.machines.append(json.loads(body)["flavor"])
        self.answer({"stage": "BUILDING", "hardware": {"current": None, "requested": hub.machines[-1]}})

    def variable(self, hub, body):
        value = json.loads(body)
        hub.variables[value["key"]] = value["value"]
        self.answer({})

    def info(self, hub, _):
        """Of a revision: the branch main, the tag v1, or the commit."""
        owner, name, *rest = urlsplit(self.path).path.split("/")[3:]
        revision = rest[1] if rest else "main"
        if not hub.files:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        return self.answer({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": n} for n in hub.files]})

    def read(self, hub, _):
        if hub.gated:
            return self.answer({"error": "Access is restricted"}, 403, X_Error_Code="GatedRepo")
        data = hub.files[unquote(self.path.split(f"/resolve/{COMMIT}/")[1])]
        tag = sha256(data).hexdigest()
        return self.answer(data, ETag=f'"{tag}"', X_Repo_Commit=COMMIT, Content_Type="application/octet-stream")


COMMIT = "0" * 40
REPO = "/api/(spaces|models|datasets)/[^/]+/[^/]+"
ROUTES = {
    "/api/whoami-v2": Handler.whoami,
    "/api/repos/create": Handler.create,
    "/api/validate-yaml": Handler.validate,
    f"{REPO}/tree/(main|{COMMIT})": Handler.tree,
    f"{REPO}/preupload/main": Handler.preupload,
    r"(/spaces|/datasets)?/[^/]+/[^/]+\.git/info/lfs/objects/batch": Handler.batch,
    "/storage/.*": Handler.store,
    f"{REPO}/commit/main": Handler.commit,
    "/api/spaces/[^/]+/[^/]+/hardware": Handler.hardware,
    "/api/spaces/[^/]+/[^/]+/variables": Handler.variable,
    f"{REPO}(/revision/[^/]+)?": Handler.info,
    f"(/datasets)?/[^/]+/[^/]+/resolve/{COMMIT}/.+": Handler.read,
}
