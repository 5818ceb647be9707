"""The page: tabs, theme and API. The search itself is in ``service``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from demo.files import EXAMPLES, GuardedBlocks, app_options
from demo.results import describe_counts
from demo.service import MAX_TOP_K, Answer, Service
from demo.tabs.explore import Explorer, build_explore_tab, map_component
from demo.tabs.picture_input import PictureInput
from demo.tabs.search import SORRY, SearchTab
from demo.tabs.sound_to_picture import build_generate_tab
from demo.tabs.train_your_own import TrainingTab
from demo.tabs.your_files import CorpusTab
from demo.workers import QUICK, SLOW
from fusemix.media import MediaError, shown

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
TITLE = "FuseMix: type it, show it, or say it"
MAX_FILE_SIZE = "120mb"  # ten minutes of uncompressed stereo
MAX_SESSIONS = 500  # pages remembered; the longest unused is dropped first, as each takes 180 kB

# Gradio confines css_paths to the page's content; what is around it is set here. The divider follows the last link.
_HEAD = (
    "<style>.gradio-container { min-height: 100vh; } "
    "@media (max-width: 640px) { .gradio-container .app { padding: 12px !important; } } "
    "footer .divider { display: none; } "
    # Gradio lays its parts out one after the other; they are shown when all stand (status.js), or after four seconds.
    "html:not(.fm-ready) .gradio-container { visibility: hidden; animation: fm-late 0s 4s forwards; } "
    "@keyframes fm-late { to { visibility: visible; } } "
    "html:not(.fm-ready)::before { content: 'FuseMix'; position: fixed; inset: 40% 0 auto; text-align: center; "
    "font: 700 2rem ui-sans-serif, system-ui, sans-serif; color: #0f766e; animation: fm-early 0s 4s forwards; } "
    "@keyframes fm-early { to { visibility: hidden; } }</style>"
)


def answer_api(search: Callable[..., Answer], query: Any, top_k: float | None = 10) -> dict[str, Any]:
    """Answer an API query: return JSON, or raise a ``gr.Error`` of one sentence.

    Args:
        search: Search method of the service.
        query: Argument of that method.
        top_k: Results of each kind, 1 to 100.

    Raises:
        gr.Error: If the query cannot be answered.
    """
    try:
        if query is None:
            raise MediaError("The query is empty; send a text, a picture or a sound.")
        if not isinstance(top_k, int | float) or not 1 <= top_k <= MAX_TOP_K:
            raise MediaError(f"Ask for 1 to {MAX_TOP_K} results of each kind, not {shown(top_k)}.")
        return search(query, top_k=int(top_k)).to_json()
    except MediaError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Exception as error:
        logger.exception("A query failed.")
        raise gr.Error(SORRY, print_exception=False) from error


def launch_options(service: Service) -> dict[str, Any]:
    """Return the arguments of ``Blocks.launch``: theme, limits, and the folders whose files are served."""
    font = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        radius_size="lg",
        font=font,
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        input_background_fill="white",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_900",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
    return {
        "theme": theme,
        "css_paths": [HERE / "style.css"],
        "head": _HEAD,
        "allowed_paths": [str(folder) for folder in (service.root, EXAMPLES) if folder],
        "max_file_size": MAX_FILE_SIZE,
        "state_session_capacity": MAX_SESSIONS,
        "app_kwargs": app_options(lambda: service.files),
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": ["api"],
    }


def build_demo(service: Service) -> gr.Blocks:
    """Lay out the page and connect its events; launch it with :func:`launch_options`."""
    explorer = Explorer(service)
    threading.Thread(target=lambda: explorer.map, daemon=True).start()  # or the first visitor waits a second for it
    demo: gr.Blocks
    with GuardedBlocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        map_view = map_component(explorer)
        gr.HTML(
            '<header class="fm-hero"><h1>Type it, show it, or <em>say it.</em></h1>'
            f"<p>One search over {describe_counts(service.counts)}.</p></header>"
        )
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Search"):
                search = SearchTab(service, explorer, map_view)
            with gr.Tab("Explore"):
                nearest, land = build_explore_tab(explorer, map_view)
            with gr.Tab("Sound to picture"):
                build_generate_tab(service)
            with gr.Tab("Your files"):
                files = CorpusTab(service, demo)
            with gr.Tab("Train your own"):
                TrainingTab(demo, corpora=files.corpora)
        search.wire(demo, nearest, land)
        _about(service)
        _api(service)
    demo.queue(max_size=64)
    return demo


def _api(service: Service) -> None:
    """Add endpoints with stable names and JSON answers, on hidden fields."""
    top_k = gr.Number(10, label="top_k", precision=0, visible=False)
    answer = gr.JSON(visible=False)
    trigger = gr.Button(visible=False)
    queries = {
        "text": (gr.Textbox(label="text", visible=False), service.search_text),
        "image": (PictureInput(label="image", type="filepath", visible=False), service.search_image),
        "audio": (gr.Audio(label="audio", type="filepath", visible=False), service.search_audio),
    }
    for modality in sorted(service.understood & queries.keys()):
        field, search = queries[modality]
        trigger.click(
            partial(answer_api, search),
            [field, top_k],
            answer,
            api_name=f"search_{modality}",
            api_description=f"Search by {modality}: the nearest pictures, sounds and captions.",
            **(QUICK if modality == "text" else SLOW),
        )


def _networks(service: Service) -> str:
    """Name the encoders, such as: pictures (EfficientNet-Lite0), words (MiniLM-L6) and sounds (Whisper tiny.en)."""
    known = {
        "efficientnet-lite0": "EfficientNet-Lite0",
        "efficientnet-lite0-deep": "EfficientNet-Lite0, several depths",
        "minilm-l6": "MiniLM-L6",
        "whisper-tiny.en": "Whisper tiny.en",
        "whisper-tiny.en-words": "Whisper tiny.en: the sound and the words in it",
        "whisper-tiny.en-sentence": "Whisper tiny.en: the sound and the words in it, the words also through MiniLM-L6",
    }
    nouns = {"image": "pictures", "text": "words", "audio": "sounds"}
    parts = [f"{nouns.get(m, m)} ({known.get(name, name)})" for m, name in service.encoder_names.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _about(service: Service) -> None:
    with gr.Accordion("About: how it works, its limits, and the sources", open=False):
        gr.Markdown(
            f"""
**How it works.** Frozen encoders read {_networks(service)}. Small adapters, trained with FuseMix
([Vouitsis et al., CVPR 2024](https://arxiv.org/abs/2312.10144)), map what they produce into one shared space, where
similar things are close. Your query takes the same path, and an exact search finds its neighbours.

**How results are ranked.** A gallery item may have a picture, a sound and captions. Your query is compared with each of
them. The comparisons are put on the same scale and added up with learned weights; below each result you see what it
was found by. "By pixels, sound or words alone" shows the three rankings separately, with the cosine between query and
item (at most 1); cosines of pictures and captions cannot be compared with each other. Words heard clearly in a sound
count as if you had typed them. A mix is the weighted sum of its parts. The first time in the status line is the search
itself; the second includes the network and your browser.

**What it cannot do.** It understands spoken English but recognises other sounds poorly. It works best with clip-art,
stamps, emoji and simple photographs. It does not know people's names, and knows no other language well. What you send
is used for your search only and deleted within hours; nothing is trained on it. Everything in "Your files" and
"Train your own" is deleted a minute after you close the page, or after an hour.

**Sources.** {_sources(service)} Each result names its source and licence. The spoken examples are
synthetic voices (flite, espeak-ng).
"""
        )


def _sources(service: Service) -> str:
    """List the sources of the items, largest first."""
    tally: dict[tuple[str, str], int] = {}
    for modality in service.counts:
        for item in service.items(modality):
            if modality != "text":
                key = (str(item.get("source", "")), str(item.get("licence", "")))
                tally[key] = tally.get(key, 0) + 1
    ordered = sorted(tally.items(), key=lambda entry: -entry[1])
    return "; ".join(f"{count:,} from {source} ({licence})" for (source, licence), count in ordered) + "."
