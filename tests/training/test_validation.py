"""Recall on held-out pairs, by hand: each item counts once, in both directions, and the epoch that is kept."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fusemix.data.latent_writer import write_latents
from fusemix.data.pair_set import PairSet
from fusemix.training.validation import is_not_beaten, validation_recall


class AsTheyAre:
    """Latents are the embeddings."""

    def embed(self, modality, latents):
        return F.normalize(torch.as_tensor(latents), dim=1)


def joined(folder, image, text, image_of):
    """Pairs of pictures with several captions each."""
    stores = {
        "image": write_latents(folder / "i", image, modality="image", name="i"),
        "text": write_latents(folder / "t", text, modality="text", name="t"),
    }
    return PairSet(
        stores, {"image": np.array(image_of), "text": np.arange(len(text))}, np.array(image_of), np.full(len(text), "")
    )


@pytest.fixture
def captions(tmp_path):
    """Three pictures; of the five captions of the first, four find it, the others' one each finds the first too."""
    image = np.eye(3, dtype=np.float32)
    text = image[[0, 0, 0, 0, 1, 0, 0]] + np.float32(0.01)
    text[5:, 1:] += np.float32(0.2)  # further from the first picture than its own
    return joined(tmp_path, image, text, [0, 0, 0, 0, 0, 1, 2])


def test_each_caption_and_each_picture_counts_once_in_its_own_direction(captions):
    found = validation_recall(AsTheyAre(), [captions], [np.arange(7)])
    assert found == pytest.approx({"image+text/image_to_text": 1 / 3, "image+text/text_to_image": 4 / 7})


def test_only_the_chosen_pairs_are_asked_and_answered(captions):
    found = validation_recall(AsTheyAre(), [captions], [np.array([4, 5])])  # caption 4 looks like picture 1
    assert found == {"image+text/image_to_text": 0.0, "image+text/text_to_image": 0.0}
    found = validation_recall(AsTheyAre(), [captions], [np.array([3, 6])])
    assert found == {"image+text/image_to_text": 1.0, "image+text/text_to_image": 0.5}


def test_two_sets_of_the_same_modalities_are_told_apart(captions):
    found = validation_recall(AsTheyAre(), [captions, captions], [np.arange(7), np.array([3])])
    assert list(found) == [f"{i}:image+text/{way}" for i in (0, 1) for way in ("image_to_text", "text_to_image")]
    assert found["1:image+text/text_to_image"] == 1.0


def test_a_score_is_beaten_by_more_than_a_standard_error_only():
    error = (0.5 * 0.5 / 100) ** 0.5  # 0.05
    assert is_not_beaten([0.5, 0.5 - 0.99 * error], 100) and not is_not_beaten([0.5, 0.5 - 1.01 * error], 100)
    assert is_not_beaten([0.1], 1) and is_not_beaten([0.2, 0.6, 0.6], 9) and not is_not_beaten([1.0, 0.99], 9)
