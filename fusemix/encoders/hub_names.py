"""Names of encoders from the Hugging Face Hub, or from a folder in its format.

A name states every option that changes a latent, so that a checkpoint can load its encoder again::

    hub-image:facebook/dinov2-base?pooling=cls+mean&layers=-2
    hub-text:BAAI/bge-large-en-v1.5?pooling=cls
    hub-text:intfloat/e5-large-v2?pooling=mean&prefix=query:
    hub-audio:openai/whisper-small.en
    hub-audio:laion/clap-htsat-unfused
    A ++ B      the latents of two encoders of one modality, concatenated

``pooling`` is ``cls`` (the first state), ``mean`` (over the patches, words or frames), ``cls+mean`` (both, side by
side), ``last`` (texts: the last token, as CLIP and Qwen3-Embedding have it) or ``pooler`` (the network's own pooled
output, as SigLIP's attention head). Texts without one take the pooling and the default prompt that a
sentence-transformers model states, else ``mean``; pictures take ``cls``. ``layers`` counts from the end: -1 is the
last (the default, as in the paper's code), -2 the one before (the paper's text says penultimate), ``-1,-4`` both side
by side.

An encoder in a folder is recorded as ``hub-image:./name``, without the path of the machine; its ``revision`` is the
content of its files. :mod:`fusemix.encoders.recorded` finds the folder again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

POOLINGS = {
    "hub-image": ("cls", "mean", "cls+mean", "pooler"),
    "hub-text": ("cls", "mean", "cls+mean", "last", "pooler"),
    "hub-audio": ("mean",),
}


@dataclass(frozen=True)
class Spec:
    """A parsed name: ``kind:source?pooling=...&layers=...&prefix=...``; None means the model's own setting."""

    kind: str
    source: str
    pooling: str | None
    layers: tuple[int, ...]
    prefix: str | None
    query: str  # the options as they were written

    @classmethod
    def parse(cls, name: str) -> Spec:
        """Parse a name; an unknown option is an error.

        Raises:
            ValueError: If the line is not of the form above.
        """
        match = re.fullmatch(r"(hub-image|hub-text|hub-audio):([^?]+)(?:\?(.*))?", name)
        if match is None:
            raise ValueError(
                f"Expected an encoder like 'hub-image:facebook/dinov2-base?pooling=cls+mean&layers=-2', got {name!r}."
            )
        kind, source, query = match.groups()
        # '+' joins poolings here; it is not a space
        options = dict(parse_qsl((query or "").replace("+", "%2B"), keep_blank_values=True))
        if unknown := set(options) - {"pooling", "layers", "prefix"}:
            raise ValueError(f"{name!r} has the options {sorted(unknown)}; known are pooling, layers and prefix.")
        pooling = options.get("pooling")
        if pooling is not None and pooling not in POOLINGS[kind]:
            what = {"hub-image": "pictures", "hub-text": "texts", "hub-audio": "sounds"}[kind]
            raise ValueError(
                f"{name!r}: pooling must be one of ({what}: {', '.join(POOLINGS[kind])}), got {pooling!r}."
            )
        try:
            layers = tuple(int(part) for part in options.get("layers", "-1").split(","))
        except ValueError as error:
            raise ValueError(f"{name!r}: layers must be whole numbers like -1 or -1,-4.") from error
        if any(layer >= 0 for layer in layers):
            raise ValueError(f"{name!r}: layers count from the end, so they are below 0; got {layers}.")
        if pooling == "pooler" and layers != (-1,):
            raise ValueError(f"{name!r}: pooling=pooler is of the last layer; leave layers out.")
        return cls(kind, source, pooling, layers, options.get("prefix"), query or "")

    def at(self, source: str) -> str:
        """Return this name with another source."""
        return f"{self.kind}:{source}" + (f"?{self.query}" if self.query else "")
