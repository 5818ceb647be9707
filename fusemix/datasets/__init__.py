"""Readers of standard datasets on disk: they make a table of pairs (image, audio, text, split, group).

Nothing here downloads pictures or sounds. Each reader takes a folder and a tally and yields pairs; its
docstring states the protocol and the known traps. A new dataset is one function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fusemix.datasets.base import Pair, Tally
from fusemix.datasets.flickr8k import SOURCE as FLICKR8K_SOURCE
from fusemix.datasets.flickr8k import flickr8k
from fusemix.datasets.folder import folder
from fusemix.datasets.huggingface import huggingface
from fusemix.datasets.join import join_tables
from fusemix.datasets.karpathy import COCO_SOURCE, FLICKR30K_SOURCE, coco, flickr30k
from fusemix.datasets.links import CC3M_SOURCE, SBU_SOURCE, cc3m, sbu
from fusemix.datasets.sounds import AUDIOCAPS_SOURCE, CLOTHO_SOURCE, ESC50_SOURCE, audiocaps, clotho, esc50
from fusemix.datasets.table import write_table
from fusemix.datasets.visual_genome import SOURCE as VISUAL_GENOME_SOURCE
from fusemix.datasets.visual_genome import visual_genome
from fusemix.datasets.webdataset import webdataset

DATASETS: dict[str, Callable[..., Iterator[Pair]]] = {
    "coco": coco,
    "flickr30k": flickr30k,
    "flickr8k": flickr8k,
    "visual-genome": visual_genome,
    "sbu": sbu,
    "cc3m": cc3m,
    "audiocaps": audiocaps,
    "clotho": clotho,
    "esc50": esc50,
    "webdataset": webdataset,
    "huggingface": huggingface,
    "folder": folder,
}

# the source of each; nothing here downloads it
SOURCES = {
    "coco": COCO_SOURCE,
    "flickr30k": FLICKR30K_SOURCE,
    "flickr8k": FLICKR8K_SOURCE,
    "visual-genome": VISUAL_GENOME_SOURCE,
    "sbu": SBU_SOURCE,
    "cc3m": CC3M_SOURCE,
    "audiocaps": AUDIOCAPS_SOURCE,
    "clotho": CLOTHO_SOURCE,
    "esc50": ESC50_SOURCE,
}

__all__ = ["DATASETS", "SOURCES", "Pair", "Tally", "join_tables", "write_table"]
