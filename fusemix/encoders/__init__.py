"""Frozen unimodal encoders behind one small interface: items in, latents out."""

from __future__ import annotations

import importlib

from fusemix.encoders.base import Concatenation, Encoder
from fusemix.extras import extra

# name -> (module, class); a new encoder is one class and one line here.
PACKAGED = {
    "efficientnet-lite0": ("fusemix.encoders.image", "EfficientNetLite0"),
    "efficientnet-lite0-deep": ("fusemix.encoders.image", "EfficientNetLite0Deep"),
    "efficientnet-lite1": ("fusemix.encoders.image", "EfficientNetLite1"),  # optional, as lite2: a package of its own
    "efficientnet-lite2": ("fusemix.encoders.image", "EfficientNetLite2"),
    "minilm-l6": ("fusemix.encoders.text", "MiniLML6"),
    "whisper-tiny.en": ("fusemix.encoders.audio", "WhisperTinyEn"),
    "whisper-tiny.en-words": ("fusemix.encoders.speech", "WhisperTinyEnWords"),
    "whisper-tiny.en-sentence": ("fusemix.encoders.speech", "WhisperTinyEnSentence"),
}
# openai-whisper's names of the sizes that no package carries; on the Hub they are called the same
_WHISPER = (
    "tiny",
    "base",
    "base.en",
    "small",
    "small.en",
    "medium",
    "medium.en",
    "large-v2",
    "large-v3",
    "large-v3-turbo",
)
_SOUNDS = ("fusemix.encoders.audio", "fusemix.encoders.speech")
DEFAULT_ENCODERS = {"image": "efficientnet-lite0", "text": "minilm-l6", "audio": "whisper-tiny.en"}

__all__ = ["DEFAULT_ENCODERS", "PACKAGED", "Encoder", "load_encoder"]


def load_encoder(name: str, *, device: str = "cpu") -> Encoder:
    """Load a frozen encoder by name.

    Args:
        name: One of :data:`PACKAGED`; ``whisper-small.en`` and Whisper's other sizes, from the Hub; ``hub-image:``,
            ``hub-text:`` or ``hub-audio:`` and a Hub id or folder (options: :mod:`fusemix.encoders.hub_names`); or
            several, joined by `` ++ ``. Hub encoders are probed (:mod:`fusemix.encoders.probe`).
        device: A torch device string.

    Raises:
        FileNotFoundError: If a folder or Hub model, or a file of it, is not there.
        ValueError: If no encoder has that name, its weights are not the expected bytes, or it fails the probe.
        ImportError: If the package that carries the weights is not installed.
    """
    if " ++ " in name:
        return Concatenation([load_encoder(part, device=device) for part in name.split(" ++ ")])
    if name.removeprefix("whisper-") in _WHISPER and name.startswith("whisper-"):
        name = f"hub-audio:openai/{name}"
    if name.startswith("hub-"):
        from fusemix.encoders import hub
        from fusemix.encoders.hub_names import Spec

        kind = Spec.parse(name).kind
        with extra("hub", f"The encoder {name}"):
            if kind == "hub-image":
                return hub.HubImage(name, device=device)
            return hub.HubText(name, device=device) if kind == "hub-text" else hub.HubAudio(name, device=device)
    if name not in PACKAGED:
        raise ValueError(f"No encoder is called {name!r}; expected one of {sorted(PACKAGED)}, or hub-image:owner/name.")
    module, class_name = PACKAGED[name]
    sounds = ("av", "whisper") if module in _SOUNDS else ()
    with extra("audio" if sounds else "encoders", f"The encoder {name}", *sounds):
        encoder: Encoder = getattr(importlib.import_module(module), class_name)(device=device)
    return encoder
