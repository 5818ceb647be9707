"""Files of a Hub encoder: finding, loading and identifying them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusemix.encoders.hub_names import POOLINGS
from fusemix.files import read_json, sha256_of
from fusemix.hub_folders import local_folder

_HUB_TIMEOUT_S = 10
# names of the poolings in older and newer sentence-transformers files
_THEIR_POOLING = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}
_PROCESSOR_FILES = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer*.json", "special_tokens_map.json",
    "added_tokens.json", "vocab*.*", "merges.txt", "*.model", "sentence_*config.json",
)  # fmt: skip
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tekken.json")  # each holds a whole vocabulary
# tensors that no hidden state depends on in inference, by the last parts of their names
_UNUSED = re.compile(r"(^|\.)(mask_token|masked_spec_embed|position_ids|logit_scale\w*|logit_bias)$")
_POOLER = re.compile(r"(^|\.)(pooler|head|vision_model\.head|text_model\.head)\.")


@dataclass(frozen=True)
class Stated:
    """Settings that a sentence-transformers model states; the defaults are for every other model."""

    pooling: str = "mean"
    prompt: str = ""
    include_prompt: bool = True
    lower: bool = False
    limit: int | None = None
    subfolder: str = ""


class HubFiles:
    """The files of a folder or of one commit on the Hub, and the parts loaded from them."""

    def __init__(self, source: str) -> None:
        self.source, self.folder = source, local_folder(source, "encoder")
        self._options: dict[str, Any] = {} if self.folder else _at_the_hub(source)

    def read(self, name: str) -> Any:
        """Read a JSON file; None if the model has no such file."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = self.folder / name if self.folder else Path(hf_hub_download(self.source, name, **self._options))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None
        return read_json(path) if path.is_file() else None

    def sentence_transformers(self, name: str, pooling: str | None) -> Stated:
        """Read ``modules.json`` and the files it names; an unknown pooling is an error."""
        modules = self.read("modules.json")
        if not modules:
            return Stated()
        paths = {str(module["type"]).rsplit(".", 1)[-1]: str(module["path"]) for module in modules}
        pool = self.read(f"{paths['Pooling']}/config.json") or {} if "Pooling" in paths else {}
        sub = paths.get("Transformer", "")
        if sub:
            self._options["subfolder"] = sub
        own = self.read(f"{sub}/sentence_bert_config.json" if sub else "sentence_bert_config.json") or {}
        prompts = self.read("config_sentence_transformers.json") or {}
        said = pool.get("pooling_mode")
        if said is None:
            said = [
                key.removeprefix("pooling_mode_") for key, on in pool.items() if key.startswith("pooling_mode_") and on
            ]
        modes = [said] if isinstance(said, str) else list(said)
        ours = "+".join(_THEIR_POOLING.get(mode, "?") for mode in modes) or "mean"
        if pooling is None and ours not in POOLINGS["hub-text"]:
            raise ValueError(
                f"{name}: the model pools by {' and '.join(modes)}, which is not done here; choose one of "
                f"{', '.join(POOLINGS['hub-text'])} with '?pooling='."
            )
        prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
        return Stated(
            ours, prompt, bool(pool.get("include_prompt", True)), bool(own.get("do_lower_case")),
            own.get("max_seq_length"), sub,
        )  # fmt: skip

    def place(self) -> tuple[str, dict[str, Any]]:
        """Return the folder of the network itself, or its Hub id, and what its loading is told (the commit)."""
        options = dict(self._options)
        if self.folder is None:
            return self.source, options
        return str(self.folder / options.pop("subfolder", "")), options

    def image_processor(self) -> Any:
        """Load the model's image processor, in its variant without torchvision."""
        from transformers import AutoImageProcessor
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        stated = self.read("preprocessor_config.json") or {}
        if str(stated.get("image_processor_type", "")).startswith("DINOv3"):
            # it exists for torchvision only; the same steps, but resized by PIL (8 bits) and then scaled
            return self._fetch(ViTImageProcessorPil)
        return self._fetch(AutoImageProcessor, backend="pil")

    def tokenizer(self) -> Any:
        """The model's own.

        Raises:
            FileNotFoundError: If the folder lacks its files: transformers would build one with an empty vocabulary.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = self._fetch(AutoTokenizer)
        except FileNotFoundError:
            self._check_vocabulary({})
            raise
        if tokenizer.vocab_files_names:  # of bytes or characters alone there are none
            self._check_vocabulary(tokenizer.vocab_files_names)
        return tokenizer

    def _check_vocabulary(self, names: dict[str, str]) -> None:
        """Raise unless a folder holds the tokenizer's vocabulary files.

        ``names`` are the vocabulary files of its class; if the class could not be loaded, any usual file will do.
        """
        if self.folder is None:
            return
        folder = self.folder / self._options.get("subfolder", "")
        parts = [names[key] for key in ("vocab_file", "merges_file") if key in names] or ["vocab.json", "merges.txt"]
        usual = [] if names else ["vocab.txt", *(path.name for path in folder.glob("*.model"))]
        if any((folder / name).is_file() for name in [*_VOCABULARIES, *usual]):
            return
        if not all((folder / name).is_file() for name in parts):
            looked = ", ".join([*_VOCABULARIES, *usual])
            raise FileNotFoundError(
                f"{folder} lacks the files of its tokenizer: looked for {looked}, or {' and '.join(parts)}. Save the "
                "tokenizer into the folder too (AutoTokenizer...save_pretrained), or download the whole model."
            )

    def feature_extractor(self) -> Any:
        """The model's own."""
        from transformers import AutoFeatureExtractor

        return self._fetch(AutoFeatureExtractor)

    def network(self, part: Any, pooling: str) -> Any:
        """Load the part of the network that is used, and check that the file held every weight it needs.

        Raises:
            ValueError: If weights are missing, which transformers would fill at random.
        """
        from transformers import AutoModel

        whole, info = self._fetch(AutoModel, output_loading_info=True)
        used = part(whole)
        needed = {id(tensor) for tensor in used.state_dict(keep_vars=True).values()}
        names = whole.state_dict(keep_vars=True)
        missing = sorted(
            name
            for name in info["missing_keys"]
            if (name not in names or id(names[name]) in needed)
            and not _UNUSED.search(name)
            and (pooling == "pooler" or not _POOLER.search(name))
        )
        if missing:
            raise ValueError(
                f"The weights of {self.source} lack {len(missing)} tensors that the latent needs, the first "
                f"{missing[0]}; they would be filled at random. Download or save the model again."
            )
        return used

    def identity(self, network: Any) -> str:
        """Return the Hub commit, or the SHA-256 of a folder's weights, processor and tokenizer files."""
        if self.folder is None:
            return str(self._options.get("revision") or getattr(network.config, "_commit_hash", None) or "unknown")
        folder = self.folder / self._options.get("subfolder", "")
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        digest = hashlib.sha256()
        for path in sorted({path for pattern in _PROCESSOR_FILES for path in folder.glob(pattern)}):
            digest.update(path.name.encode() + b"\0" + _content(path) + b"\0")
        return "-".join([*(sha256_of(path)[:16] for path in files), digest.hexdigest()[:16]])

    def _fetch(self, auto: Any, **options: Any) -> Any:
        """Call ``from_pretrained``; a failure becomes one sentence."""
        try:
            return auto.from_pretrained(self.source, **self._options, **options)
        except Exception as error:  # transformers, tokenizers and safetensors raise many types, Exception itself too
            said = (str(error).splitlines() or ["no reason given"])[0]
            raise FileNotFoundError(
                f"{self.source!r} could not be loaded as an encoder ({type(error).__name__}: {said}). Check the name "
                "and the network; for a gated model, accept its licence on its page and run 'hf auth login'."
            ) from error


def text_tower(whole: Any) -> Any:
    """Return the text encoder of a network."""
    if getattr(whole, "text_model", None) is not None:  # CLIP, SigLIP, CLAP
        return whole.text_model
    # a saved T5EncoderModel no longer says that it was an encoder and a decoder
    return whole.get_encoder() if hasattr(whole, "encoder") and hasattr(whole, "decoder") else whole


def audio_tower(whole: Any) -> Any:
    """Return the audio encoder of a network."""
    if whole.config.model_type == "whisper":  # WhisperEncoder.from_pretrained would load random weights, silently
        return whole.get_encoder()
    return getattr(whole, "audio_model", whole)


def _content(path: Path) -> bytes:
    """Return a file's bytes; for JSON its content without the fields that depend on the library's version."""
    if path.suffix != ".json":
        return path.read_bytes()
    content = read_json(path)
    if isinstance(content, dict):
        content = {k: v for k, v in content.items() if k not in ("transformers_version", "_name_or_path")}
    return json.dumps(content, sort_keys=True).encode()


def _at_the_hub(source: str) -> dict[str, Any]:
    """Return the commit to load or, if the Hub cannot be reached, the option to use local copies only.

    Asked once, in advance: transformers would retry for every file.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return {"revision": HfApi().model_info(source, timeout=_HUB_TIMEOUT_S).sha}
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"The Hub has no model {source!r}, or it is private, and there is no such folder; check the name, or run "
            "'hf auth login'."
        ) from error
    except Exception as error:  # offline by choice, no network, a proxy, a busy Hub: each raises another type
        if not isinstance(try_to_load_from_cache(source, "config.json"), str):
            raise FileNotFoundError(
                f"{source!r} is no folder here, and the Hub cannot be reached ({type(error).__name__}); check the "
                "network, or download the model elsewhere and name its folder."
            ) from error
        return {"local_files_only": True}
