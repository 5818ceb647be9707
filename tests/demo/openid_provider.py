"""A small OpenID provider that signs everyone in as one visitor, as a local HTTP server."""

import json
import threading
import time
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from joserfc import jwk, jwt


class Provider(ThreadingHTTPServer):
    """Attributes: token it hands out; seconds that it is good for; scopes it was asked for."""

    daemon_threads = True

    def __init__(self, token):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token, self.lasts_s, self.asked, self.nonces = token, 3600, "", {}
        self.key = jwk.RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"})
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, body, code=200):
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self):  # noqa: RET503
        server, asked = self.server, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(asked.query).items()}
        if asked.path == "/.well-known/openid-configuration":
            ends = {f"{name}_endpoint": f"{server.address}/{name}" for name in ("authorization", "token")}
            return self.answer({"issuer": server.address, "jwks_uri": f"{server.address}/keys", **ends})
        if asked.path == "/keys":
            return self.answer({"keys": [server.key.as_dict(private=False)]})
        server.asked, code = query["scope"], f"code-{len(server.nonces)}"
        server.nonces[code] = query["nonce"]
        self.send_response(302)
        glue = "&" if "?" in query["redirect_uri"] else "?"
        self.send_header("Location", query["redirect_uri"] + glue + urlencode({"code": code, "state": query["state"]}))
        self.end_headers()

    def do_POST(self):
        server = self.server
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        given = unquote(b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode())
        if given != "client:very secret":
            return self.answer({"error": "invalid_client"}, 401)
        now = int(time.time())
        claims = {
            "iss": server.address,
            "aud": "client",
            "sub": "1",
            "iat": now,
            "exp": now + 3600,
            "nonce": server.nonces.pop(form["code"][0]),
            "name": "A Visitor",
            "preferred_username": "me",
            "profile": "https://hub/me",
            "picture": "https://hub/me.png",
        }
        signed = jwt.encode({"alg": "RS256", "kid": "1"}, claims, server.key)
        return self.answer(
            {
                "access_token": server.token,
                "token_type": "bearer",
                "expires_in": server.lasts_s,
                "scope": server.asked,
                "id_token": signed,
            }
        )
