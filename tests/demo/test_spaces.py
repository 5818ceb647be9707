"""The app under the real package ``spaces``, in an environment of its own, with a stand-in for the device server.

    FUSEMIX_SPACES_PYTHON=/path/to/env/bin/python python -m pytest -m slow tests/demo/test_spaces.py

The environment has Python 3.12, PyTorch's CUDA build, ``spaces`` and requirements.txt. No GPU is there: what ``spaces``
moves to it is moved to the processor instead (EMULATED), the only thing here that is not as on ZeroGPU.
"""

import json
import os
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("FUSEMIX_SPACES_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="FUSEMIX_SPACES_PYTHON names no Python with spaces and CUDA's PyTorch"),
]
EMULATED = """
import sys
import spaces
import torch
from itertools import chain
from pathlib import Path
from spaces.zero import torch as zero
from spaces.zero.torch import patching

def move(callback=None):
    for pack in patching.tensor_packs:
        data, start = Path(pack.path()).read_bytes(), 0
        for tensor, size, aligned in [*chain(*pack.batches), *pack.big_tensors]:
            raw = torch.frombuffer(bytearray(data[start : start + size]), dtype=torch.uint8)
            made = torch.tensor([], dtype=tensor.dtype).set_(raw.untyped_storage(), 0, tensor.shape, tensor.stride())
            for fake in pack.fakes[tensor]:
                fake.data = made
            start += aligned

assert torch.cuda.is_available() and torch.zeros(1, device="cuda").device.type == "cuda"  # as spaces pretends
zero.init, zero.move = lambda uuid: None, move
import app
sys.exit(app.main(sys.argv[1:]))
"""


class DeviceServer(BaseHTTPRequestHandler):
    """Answer what the package asks: may it start, is there a GPU, is it allowed, is it given back."""

    asked: list = []  # (path, query)
    refusal: int | None = None

    def do_POST(self):
        """Answer."""
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        self.asked.append((path, {key: value[0] for key, value in query.items()}))
        code, body = 200, {}
        if path == "/schedule":
            code = self.refusal or 200
            body = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}
            if code == 429:
                body = {"left": 3, "wait": 3600}
        sent = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def serve(tmp_path):
    """Start the app as ZeroGPU does, with more environment: (client, device server, log)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (DeviceServer,), {"asked": []}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    processes = []

    def start(**more):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}",
            "ZEROGPU_OFFLOAD_DIR": str(tmp_path / "tensors"),
            "GRADIO_TEMP_DIR": str(tmp_path / "gradio"),
            "HF_HOME": str(tmp_path / "hf"),
            "OMP_NUM_THREADS": "1",
            **more,
        }
        log = tmp_path / "log.txt"
        with open(log, "w") as handle:
            command = [PYTHON, "-c", EMULATED, "--port", str(port), "--host", "127.0.0.1"]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=handle, stderr=handle))
        started = time.monotonic()
        while time.monotonic() - started < 480 and processes[0].poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/").status_code == 200:
                    return Client(f"http://127.0.0.1:{port}/", verbose=False), server.RequestHandlerClass, log
            except httpx.TransportError:
                time.sleep(0.5)
        pytest.fail(f"The app did not start:\n{log.read_text()[-3000:]}")

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=60)
    server.shutdown()


ASK = [None, "a sailing boat", None, 1, 5, 3, 0, 0, 1, 1, True, 0.5, 0, False]  # 5 steps


def test_the_small_decoder_draws_on_a_lent_gpu_and_what_is_refused_is_said(serve):
    client, server, log = serve(HF_HUB_OFFLINE="1")
    assert [path for path, _ in server.asked] == ["/startup-report"]
    client.predict("a red flower", 3, api_name="/search_text")
    assert len(server.asked) == 1  # a search asks for no GPU
    _, sentence, pictures = client.predict(*ASK, api_name="/generate")
    assert len(pictures) == 1 and "1 repaint in" in sentence, log.read_text()[-3000:]
    assert [path for path, _ in server.asked[1:]] == ["/schedule", "/allow", "/release"]
    assert server.asked[1][1]["durationSeconds"] == "11" and server.asked[3][1]["fail"] == "false"
    for code, said in ((429, "GPU time for today is used up"), (503, "All GPUs are taken")):
        server.refusal = code
        with pytest.raises(AppError, match=said):
            client.predict(*ASK, api_name="/generate")
    assert "Traceback" not in log.read_text()


def test_stable_diffusion_gets_its_conditioner_with_the_first_drawing(serve, clip_decoder):
    client, server, log = serve(FUSEMIX_DECODER=str(clip_decoder))
    drawn = [client.predict(*ASK[:10], False, 1, 0, False, api_name="/generate") for _ in range(2)]
    assert all(len(pictures) == 1 and "1 picture in" in sentence for _, sentence, pictures in drawn)
    assert [query["durationSeconds"] for path, query in server.asked if path == "/schedule"] == [
        "92",
        "11",
        "11",
    ]  # CLIP of 4,068 pictures, then five steps
    assert "The conditioner is kept in" in log.read_text()
