"""Hugging Face Spaces entry point; also runs locally: ``python app.py --port 7860``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from demo.zero_gpu import on_zero_gpu

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported: no look-ups outside
# By default Gradio sums up its last 10,000 calls after every call, for a page that is switched off here. After 1,000
# calls this costs more than answering a query.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))

if on_zero_gpu():
    import spaces  # noqa: F401 - before gradio and torch, or it refuses to work

    os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # "Train your own" borrows no GPU, and torch says there is one

ROOT = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="The FuseMix search app.")
    parser.add_argument(
        "--checkpoint",
        default=os.environ.get("FUSEMIX_CHECKPOINT") or str(ROOT / "checkpoints/default"),
        help="checkpoint folder or Hub id (default: FUSEMIX_CHECKPOINT of the environment, or the one that ships)",
    )
    parser.add_argument(
        "--index",
        default=os.environ.get("FUSEMIX_INDEX") or str(ROOT / "demo/index"),
        help="index folder, owner/name?root=GALLERY of a dataset on the Hub, or postgresql://user@host/database/"
        "collection?root=GALLERY (default: FUSEMIX_INDEX of the environment, or the one that ships)",
    )
    parser.add_argument("--host", help="address to listen on (default: this machine only, or the Space's)")
    parser.add_argument("--port", type=int, help="TCP port (default: the first free one from 7860)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Serve until interrupted; return 2 if something needed is missing."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        tempfile.gettempdir()  # Gradio asks for it while it is imported
        from demo.service import Service
        from demo.ui import build_demo, launch_options

        service = Service.from_pretrained(args.checkpoint, args.index)
        build_demo(service).launch(server_name=args.host, server_port=args.port, **launch_options(service))
    except (ValueError, OSError, ImportError) as error:
        logging.getLogger("app").error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
