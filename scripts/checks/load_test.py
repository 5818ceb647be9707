"""Load test of a running app with many visitors: answers, failures, latencies, and the server's memory.

    python app.py --port 7860 &
    python scripts/checks/load_test.py --url http://127.0.0.1:7860 --visitors 50 --seconds 300 --pid $! --json load.json

Each visitor asks, waits for the answer, thinks, asks again: words, pictures, sounds, and now and then a drawing, files
of their own (sent, embedded, searched, deleted) or a small training. Latencies are what a visitor waits, from the
question to the last byte of the answer. Every question is a session of its own, the costliest case for the server. With
--pid the file also holds a sample of the server's memory every half minute, and how much it grew from minute 5 (of a
short run: from its fifth part) to the end. The exit status is 1 if any question failed.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from fusemix.files import write_json

WORDS = ("a cat asleep", "a ship on the sea", "fresh fruit", "a fast car", "two children playing", "rain on a roof")
PICTURE = ROOT / "demo/gallery/images"
SOUND = ROOT / "demo/examples/spoken-cake.mp3"
SETTLED_S = 300.0  # memory should be constant from here on; in a run shorter than twice this, from a fifth of it
SAMPLE_S = 30.0  # between two samples of memory written down
SHARES = {"text": 0.65, "image": 0.15, "audio": 0.13, "draw": 0.02, "own": 0.03, "train": 0.02}  # of the questions
SEARCHES = ("text", "image", "audio")
CAPTIONS = b"a red apple\na green pear\nrain on a roof\na dog asleep\n"  # own sounds, beside OWN_PICTURES pictures
OWN_PICTURES = 4
PAIRS, WIDTH, EPOCHS = 200, 32, 10  # of a small training


@dataclass
class Record:
    """Results of the test.

    Attributes:
        waits: Kind of question -> seconds waited, one per answer.
        failures: Sentences, one per question that was not answered.
        memory: (seconds since the start, MB resident) of the server.
    """

    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--think", type=float, default=8, help="seconds a visitor looks at an answer, on average")
    parser.add_argument("--pid", type=int, help="process of the app, to watch its memory (Linux)")
    parser.add_argument("--search-only", action="store_true", help="the first tab alone")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--note", default="", help="about the machine and what else ran, to be written down")
    return parser.parse_args(argv)


def drawing(words: str) -> list[object]:
    """Return the inputs of the drawing's endpoint, in the order of its widgets: ten steered steps from noise."""
    return [None, words, None, 0.5, 10, 3, 0, 0, 1, 1, False, 0.7, 0.12, False]


async def call(client: httpx.AsyncClient, name: str, data: list[Any]) -> Any:
    """Call a Gradio endpoint and return its answer.

    Raises:
        RuntimeError: If the app answered with an error.
    """
    begun = await client.post(f"/gradio_api/call/{name}", json={"data": data})
    begun.raise_for_status()
    event = ""
    async with client.stream("GET", f"/gradio_api/call/{name}/{begun.json()['event_id']}") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: ") and event == "complete":
                return json.loads(line.removeprefix("data: "))
            elif line.startswith("data: ") and event == "error":
                raise RuntimeError(f"{name}: {line.removeprefix('data: ')}")
    raise RuntimeError(f"{name}: the answer broke off after event {event!r}")


async def upload(client: httpx.AsyncClient, name: str, content: bytes) -> dict[str, Any]:
    """Upload a file for an endpoint."""
    sent = await client.post("/gradio_api/upload", files={"files": (name, content)})
    sent.raise_for_status()
    return {"path": sent.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}


async def upload_file(client: httpx.AsyncClient, path: Path) -> dict[str, Any]:
    """Upload a local file."""
    return await upload(client, path.name, path.read_bytes())


class Page:
    """A browser's page: functions that need a session have no endpoint but are events of widgets."""

    def __init__(self, client: httpx.AsyncClient, config: dict[str, Any]) -> None:
        self._client = client
        self._ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        self._events = config["dependencies"]
        self._session = secrets.token_hex(8)

    async def fire(self, elem_id: str, event: str, data: list[Any], *, then: list[Any] | None = None) -> str:
        """Fire an event and return its result as JSON, or that of the following event ``then``.

        Raises:
            RuntimeError: If the app answered with an error or an apology.
        """
        target = [self._ids[elem_id], event]
        (first,) = [one for one in self._events if target in one["targets"]]
        answer = await self._run(first, data)
        if then is not None:
            (second,) = [one for one in self._events if one["trigger_after"] == first["id"]]
            answer = await self._run(second, then)
        if "fm-apology" in answer:
            raise RuntimeError(f"{elem_id}: {answer}")
        return answer

    async def _run(self, event: dict[str, Any], data: list[Any]) -> str:
        body = {"data": data, "fn_index": event["id"], "session_hash": self._session}
        if not event["queue"]:
            done = await self._client.post("/gradio_api/run/predict", json=body)
            done.raise_for_status()
            return done.text
        (await self._client.post("/gradio_api/queue/join", json=body)).raise_for_status()
        said = ""  # a sentence stands in one of the messages, the last of them says only what changed since
        params = {"session_hash": self._session}
        async with self._client.stream("GET", "/gradio_api/queue/data", params=params) as stream:
            async for line in stream.aiter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                said += json.dumps(message.get("output"), ensure_ascii=False) if message.get("output") else ""
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(said)
                    return said
        raise RuntimeError(f"the answer broke off after {said[-200:]!r}")


@asynccontextmanager
async def timed(record: Record, kind: str) -> AsyncIterator[None]:
    """Record the duration of the block, unless it failed."""
    started = time.monotonic()
    yield
    record.waits[kind].append(time.monotonic() - started)


def expect(words: str, answer: str) -> None:
    """Raise RuntimeError if the words are not in the answer."""
    if words not in answer:
        raise RuntimeError(f"{words!r} is not in {answer[-200:]!r}")


async def own_files(page: Page, client: httpx.AsyncClient, record: Record, pictures: list[Path]) -> None:
    """Send a few files, wait until they are embedded, search them, delete them."""
    async with timed(record, "own, embedding"):
        files = [await upload_file(client, path) for path in pictures]
        files.append(await upload(client, "captions.txt", CAPTIONS))
        answer = await page.fire("fm-own-files", "upload", [files], then=[None])
        expect(f"{len(pictures) + CAPTIONS.count(10)} files and captions in", answer)
    async with timed(record, "own, search"):
        expect("Nearest to", await page.fire("fm-own-go", "click", ["a red apple"]))
    expect("are deleted", await page.fire("fm-own-delete", "click", []))


async def training(page: Page, client: httpx.AsyncClient, record: Record, dice: random.Random) -> None:
    """Send two small files of latents, wait for the checkpoint, delete it."""
    async with timed(record, "train"):
        given: list[Any] = []
        for name in ("image", "text"):
            latents = io.BytesIO()
            rows = np.random.default_rng(dice.randrange(2**32)).normal(size=(PAIRS, WIDTH))
            np.save(latents, rows.astype(np.float32))
            given += [name, await upload(client, f"{name}.npy", latents.getvalue())]
        expect("Recall@1 among", await page.fire("fm-train", "click", given, then=[None, EPOCHS, False]))
    expect("are deleted", await page.fire("fm-train-delete", "click", []))


async def ask(
    client: httpx.AsyncClient,
    kind: str,
    dice: random.Random,
    pictures: list[Path],
    record: Record,
    config: dict[str, Any],
) -> None:
    """Ask a question of a kind; files are uploaded each time, as by a visitor."""
    if kind == "own":
        await own_files(Page(client, config), client, record, dice.sample(pictures, OWN_PICTURES))
    elif kind == "train":
        await training(Page(client, config), client, record, dice)
    else:
        async with timed(record, kind):
            await ask_endpoint(client, kind, dice, pictures)


async def ask_endpoint(client: httpx.AsyncClient, kind: str, dice: random.Random, pictures: list[Path]) -> None:
    """Request a search or a drawing.

    Raises:
        RuntimeError: If the app answered with an error or with nothing.
    """
    if kind == "text":
        [answer] = await call(client, "search_text", [dice.choice(WORDS), 10])
    elif kind == "image":
        [answer] = await call(client, "search_image", [await upload_file(client, dice.choice(pictures)), 10])
    elif kind == "audio":
        [answer] = await call(client, "search_audio", [await upload_file(client, SOUND), 10])
    else:
        answer = await call(client, "generate", drawing(dice.choice(WORDS)))
    if not answer:
        raise RuntimeError(f"{kind}: an empty answer")


async def visitor(
    number: int, args: argparse.Namespace, record: Record, until: float, pictures: list[Path], config: dict[str, Any]
) -> None:
    """Ask and think until the time is over."""
    dice = random.Random(number)
    kinds = SEARCHES if args.search_only else tuple(SHARES)
    async with httpx.AsyncClient(base_url=args.url, timeout=120) as client:
        await asyncio.sleep(dice.random() * args.think)  # spread the starts
        while time.monotonic() < until:
            kind = dice.choices(kinds, [SHARES[k] for k in kinds])[0]
            try:
                await ask(client, kind, dice, pictures, record, config)
            except (httpx.HTTPError, RuntimeError, ValueError) as error:
                record.failures.append(f"{kind}: {type(error).__name__} {error}"[:300])
            await asyncio.sleep(dice.expovariate(1 / args.think))


async def watch(pid: int, record: Record, started: float) -> None:
    """Record the server's resident memory every two seconds."""
    page = 4096 / 1e6
    while True:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        record.memory.append((round(time.monotonic() - started, 1), round(pages * page, 1)))
        await asyncio.sleep(2)


async def visit(args: argparse.Namespace) -> Record:
    """Run all visitors concurrently."""
    record, started = Record(), time.monotonic()
    pictures = sorted(PICTURE.glob("*"))[::50]
    watching = asyncio.create_task(watch(args.pid, record, started)) if args.pid else None
    async with httpx.AsyncClient(base_url=args.url, timeout=120) as client:
        config = (await client.get("/config")).raise_for_status().json()
    visitors = [visitor(i, args, record, started + args.seconds, pictures, config) for i in range(args.visitors)]
    await asyncio.gather(*visitors)
    if watching:
        watching.cancel()
    return record


def figures(record: Record, args: argparse.Namespace) -> dict[str, Any]:
    """Summarise the record for the JSON file."""
    waits = {
        kind: {
            "answers": len(seconds),
            **{f"p{q}": round(float(np.percentile(seconds, q)), 3) for q in (50, 95, 99)},
            "longest": round(max(seconds), 3),
        }
        for kind, seconds in sorted(record.waits.items())
    }
    values: dict[str, Any] = {
        "note": args.note,
        "visitors": args.visitors,
        "seconds": args.seconds,
        "think_seconds": args.think,
        "load_average": round(os.getloadavg()[1], 2),
        "processors": os.cpu_count(),
        "waits_seconds": waits,
        "failures": len(record.failures),
        "first_failures": record.failures[:5],
    }
    if record.memory:
        values["memory_mb"] = memory_figures(
            record.memory, SETTLED_S if args.seconds >= 2 * SETTLED_S else args.seconds / 5
        )
    return values


def memory_figures(memory: list[tuple[float, float]], settled_s: float) -> dict[str, Any]:
    """Summarise the course of the memory.

    Args:
        memory: (seconds since the start, MB), in order.
        settled_s: Start of the growth measurement; the last sample if there is none later.

    Returns:
        MB at the start, when settled and at the end; the least and most since; growth in per cent since, of the end and
        of the most; and a sample every :data:`SAMPLE_S`.
    """
    settled = [mb for seconds, mb in memory if seconds >= settled_s] or [memory[-1][1]]
    samples: list[tuple[float, float]] = []
    for seconds, mb in memory:
        if seconds >= len(samples) * SAMPLE_S:
            samples.append((seconds, mb))
    return {
        "start": memory[0][1],
        "settled_seconds": settled_s,
        "settled": settled[0],
        "end": settled[-1],
        "least_since": min(settled),
        "most_since": max(settled),
        "growth_percent": round(100 * (settled[-1] / settled[0] - 1), 2),
        "most_growth_percent": round(100 * (max(settled) / settled[0] - 1), 2),
        "samples": samples,
    }


def main(argv: list[str] | None = None) -> int:
    """Visit, print, write; 1 if a question failed, 2 if the app is not there."""
    args = parse(argv)
    console = Console()
    try:
        httpx.get(args.url, timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        console.print(f"[red]error:[/red] no app answers at {args.url} ({error}); start it with python app.py.")
        return 2
    values = figures(asyncio.run(visit(args)), args)
    table = Table("question", "answers", "p50 s", "p95 s", "p99 s", "longest s")
    for kind, seen in values["waits_seconds"].items():
        table.add_row(kind, *(str(seen[key]) for key in ("answers", "p50", "p95", "p99", "longest")))
    console.print(table)
    console.print(f"{values['failures']} failures {values['first_failures']}")
    if memory := values.get("memory_mb"):
        console.print(
            f"memory: {memory['start']:.0f} MB at the start, {memory['settled']:.0f} after "
            f"{memory['settled_seconds']:.0f} s, {memory['end']:.0f} at the end ({memory['growth_percent']:+.1f} %); "
            f"in between {memory['least_since']:.0f} to {memory['most_since']:.0f}"
        )
    if args.json:
        write_json(args.json, values)
    return 1 if values["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
