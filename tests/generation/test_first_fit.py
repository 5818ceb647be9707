"""The conditioner that is fitted from an index at the first start, and kept."""

import shutil

import pytest
import torch
from PIL import Image

from fusemix.generation.bridges import Conditioner
from fusemix.generation.first_fit import IndexPairs, conditioner_for, embed_pictures, kept_folder, needs_conditioner
from fusemix.generation.generator import Generator
from fusemix.model.adapters import FusionModel
from fusemix.search.index import EmbeddingIndex
from tests.conftest import embeddings
from tests.generation.test_generator import tiny_small_pipeline

N = 60  # pictures of the index
pytestmark = pytest.mark.usefixtures("own_cache")


def count_calls(monkeypatch):
    calls = []

    def embed(folder, pictures, report):
        calls.append(len(pictures))
        return embed_pictures(folder, pictures, report, device="cpu")

    return calls, embed


def test_the_pairs_are_those_of_the_items(picture_index):
    found = IndexPairs.of(picture_index)
    assert [path.name for path in found.pictures] == [f"{i}.png" for i in range(N)]
    texts, rows = found.pairs["text"]
    assert rows.tolist() == list(range(N))
    assert torch.equal(texts, torch.from_numpy(picture_index.embeddings("text")))
    assert found.pairs["audio"][1].tolist() == [0, 1, 2]
    assert 2 <= found.held_out.sum() <= 15
    fewer = IndexPairs.of(picture_index, limit=20)
    assert [path.name for path in fewer.pictures] == [f"{i}.png" for i in range(0, N, 3)]
    assert fewer.pairs["text"][1].tolist() == list(range(20))
    assert torch.equal(fewer.pairs["text"][0], torch.from_numpy(picture_index.embeddings("text")[::3]))


def test_it_is_fitted_once_kept_and_drives_the_decoder(picture_index, small_model, clip_decoder, monkeypatch):
    calls, embed = count_calls(monkeypatch)
    seen = []
    first = conditioner_for(
        clip_decoder, small_model, picture_index, embed=embed, report=lambda *progress: seen.append(progress)
    )
    again = conditioner_for(clip_decoder, small_model, picture_index, embed=embed)
    assert calls == [N] and seen[-1] == (N, N)
    assert torch.equal(first("text", embeddings(2, 5)), again("text", embeddings(2, 5)))
    assert set(first.bridges) == {"image", "text"} and first.notes["text"]["ridge"]["queries"] >= 2
    generator = Generator.from_pretrained(clip_decoder)
    generator.condition_by(first, small_model)
    made = generator.generate(embeddings(1, 7), modality="audio", steps=2)
    assert made[0].size == (16, 16)
    with pytest.raises(ValueError, match="another checkpoint"):
        torch.manual_seed(1)
        generator.condition_by(first, FusionModel(small_model.config).eval())


def test_the_map_is_what_the_pictures_say(picture_index, small_model, clip_decoder):
    """CLIP's embeddings that are linear in the shared space are found again on pictures that were held out."""
    mixing = torch.randn(8, 768, generator=torch.Generator().manual_seed(9))
    target = torch.from_numpy(picture_index.embeddings("image")) @ mixing
    made = conditioner_for(clip_decoder, small_model, picture_index, embed=lambda *_: target)
    assert made.notes["image"]["ridge"]["recall_at_1"] == 1.0
    assert made.norm == pytest.approx(target[~IndexPairs.of(picture_index).held_out].norm(dim=1).mean().item())


def test_a_modality_without_a_map_takes_the_nearest_ones(picture_index, small_model, clip_decoder):
    made = conditioner_for(clip_decoder, small_model, picture_index, embed=lambda *_: torch.randn(N, 768))
    assert [made.bridge_of(modality) for modality in ("image", "text", "audio", "smell")] == [
        *("image", "text", "text", "image")
    ]
    assert torch.equal(made("audio", embeddings(2, 5)), made("text", embeddings(2, 5)))
    assert Conditioner({}, embed_dim=8, image_embeds_dim=8).bridge_of("audio") is None
    with pytest.raises(ValueError, match="no bridge for 'audio'"):
        Conditioner({}, embed_dim=8, image_embeds_dim=9).bridge_of("audio")


def test_another_model_and_another_decoder_have_their_own(small_model, clip_decoder, tmp_path):
    torch.manual_seed(1)
    other = FusionModel(small_model.config).eval()
    changed = tmp_path / "changed"
    shutil.copytree(clip_decoder, changed)
    assert kept_folder(changed, small_model) == kept_folder(clip_decoder, small_model)  # the same, elsewhere
    weights = changed / "image_encoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert (
        len(
            {
                kept_folder(clip_decoder, small_model),
                kept_folder(clip_decoder, other),
                kept_folder(changed, small_model),
            }
        )
        == 3
    )


def test_which_decoders_need_one(clip_decoder, tmp_path):
    assert needs_conditioner(clip_decoder)
    tiny_small_pipeline(8).save_pretrained(tmp_path / "small")
    assert not needs_conditioner(tmp_path / "small")
    shutil.copytree(clip_decoder, tmp_path / "with")
    Conditioner({}, embed_dim=8, image_embeds_dim=8).save(tmp_path / "with")
    assert not needs_conditioner(tmp_path / "with")


def test_too_few_pictures_and_none_are_refused_in_a_sentence(small_model, clip_decoder, tmp_path):
    empty = EmbeddingIndex(8, model_identity=small_model.identity, root=tmp_path)
    empty.add("text", embeddings(3, 0), [{"id": str(i), "text": "words"} for i in range(3)])
    with pytest.raises(ValueError, match="holds no pictures with files"):
        conditioner_for(clip_decoder, small_model, empty, embed=lambda *_: None)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    empty.add("image", embeddings(1, 0), [{"id": "a", "path": "a.png"}])
    with pytest.raises(ValueError, match=r"too few pictures with files to fit a conditioner \(1\)"):
        conditioner_for(clip_decoder, small_model, empty, embed=lambda *_: torch.randn(1, 768))
