"""``fusemix export``: a checkpoint -> sentence-transformers, ONNX, transformers or mteb."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from fusemix.cli import flags, terminal
from fusemix.cli.command import entry, guarded, named_once


@guarded(stopped="Stopped; remove the folder and run the command again.")
def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="The trained model: a checkpoint folder or a Hub id.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; absent or empty.")],
    to: Annotated[
        Literal["sentence-transformers", "onnx", "transformers", "mteb"],
        typer.Option(help="What shall load it; docs/export.md says how."),
    ],
    path: Annotated[
        Literal["all", "closed-form"],
        typer.Option(
            help="All paths of the adapters, or their closed form alone: one linear layer, which sentence-transformers "
            "loads without code of ours. Of an ensemble, the first member's."
        ),
    ] = "all",
    modality: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME ...", help="Only these modalities.", show_default="all of the checkpoint"),
    ] = None,
    encoders: flags.Encoders = None,
) -> None:
    """Write a checkpoint in a format that other tools load, and say how they load it.

    Example: fusemix export checkpoints/mine mine-st --to sentence-transformers --path closed-form --modality text
    """
    logging.basicConfig(level=logging.ERROR)
    from fusemix.export.folder import export as write

    about = write(
        checkpoint, out, to, path=path, modalities=modality or (), encoders=named_once(encoders or [], flags.FOLDERS)
    )
    differences = about.get("difference", {})
    for name in about["modalities"] if to == "onnx" else []:
        terminal.result(f"{out}/{name}.onnx: differs from ours by at most {differences[name]:.1g}")
    trust = ", trust_remote_code=True" if about.get("trust_remote_code", True) else ""
    terminal.result(f"{out}: {_LOAD[to].format(out=out, trust=trust)}")


_LOAD = {
    "sentence-transformers": 'SentenceTransformer("{out}"{trust})',
    "onnx": 'onnxruntime.InferenceSession("{out}/NAME.onnx").run(None, {{"latents": float32 of shape (N, D_x)}})',
    "transformers": 'AutoModel.from_pretrained("{out}"{trust})',
    "mteb": "mteb.evaluate(load(), tasks), with load of {out}/model.py",
}

main = entry("export", export)

if __name__ == "__main__":
    sys.exit(main())
