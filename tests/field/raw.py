"""The app's endpoints by raw HTTP, as anybody may call them: no client between that could tidy what is sent."""

import contextlib
import json
import os
import tempfile
import uuid
from unittest import mock

import httpx

API = "/gradio_api"
AT_ONCE = 40  # events a session waits for; the queue takes 64
LEAN = {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}  # as app.py sets


class Raw:
    """A launched page, called by number or name of an endpoint."""

    def __init__(self, demo):
        self.demo = demo
        self.http = httpx.Client(base_url=demo.local_url, timeout=60)
        self.config = self.http.get("/config").json()
        self.components = {part["id"]: part for part in self.config["components"]}

    @property
    def endpoints(self):
        """Those with a function behind, each with the types of its inputs."""
        return [
            (entry, [self.components[number]["type"] for number in entry["inputs"]])
            for entry in self.config["dependencies"]
            if entry["backend_fn"]
        ]

    def values(self, entry):
        """What the page's fields hold at the beginning."""
        return [self.components[number]["props"].get("value") for number in entry["inputs"]]

    def upload(self, path):
        """Where the server keeps an upload."""
        with open(path, "rb") as handle:
            return self.http.post(f"{API}/upload", files={"files": (path.name, handle)}).json()[0]

    def ask(self, number, data, **more):
        """One call through the queue, as the page makes it; (success, output)."""
        return self.ask_all([(number, data)], **more)[0]

    def ask_all(self, calls, event_data=None):
        """Many calls through the queue; a tuple (success, output) each, in order."""
        answers = []
        for start in range(0, len(calls), AT_ONCE):
            session, order = uuid.uuid4().hex, []
            for number, data in calls[start : start + AT_ONCE]:
                body = {"fn_index": number, "data": data, "session_hash": session, "event_data": event_data}
                sent = json.dumps(body)  # halves of surrogate pairs and NaN too
                joined = self.http.post(f"{API}/queue/join", content=sent, headers={"content-type": "application/json"})
                order.append(joined.json()["event_id"] if joined.status_code == 200 else joined.text)
            found = self._completed(session, {event for event in order if len(event) == 32})
            answers += [found.get(event, (False, event)) for event in order]
        return answers

    def _completed(self, session, waiting):
        found = {}
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines() if waiting else ():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    found[message["event_id"]] = (message["success"], message["output"])
                if waiting <= found.keys():
                    break
        return found

    def call(self, name, data, *, version=""):
        """A call of the documented API by name: the text of its event stream."""
        begun = self.http.post(f"{API}/call{version}/{name}", json=data if version else {"data": data})
        if begun.status_code != 200:
            return begun.text
        return self.http.get(f"{API}/call{version}/{name}/{begun.json()['event_id']}").text

    def run(self, name, data):
        """A direct call without the queue: status and text."""
        answer = self.http.post(f"{API}/run/{name}", json={"data": data})
        return answer.status_code, answer.text


@contextlib.contextmanager
def served(service):
    """The page over a service, launched for real, with a tiny decoder."""
    from demo import ui
    from demo.drawing import DECODER_VARIABLE
    from tests.generation.test_generator import tiny_small_pipeline

    with tempfile.TemporaryDirectory() as folder:
        tiny_small_pipeline(16).save_pretrained(folder)
        with mock.patch.dict(os.environ, {DECODER_VARIABLE: folder, **LEAN}):
            demo = ui.build_demo(service)
        demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **ui.launch_options(service))
        try:
            yield Raw(demo)
        finally:
            demo.close()
