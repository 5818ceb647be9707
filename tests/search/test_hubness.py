import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fusemix.data.latent_writer import write_latents
from fusemix.evaluation.metrics import ranks
from fusemix.search.hubness import bank_items, corrected, hubness


def unit(n, seed, dim=8):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_hubness_is_the_mean_of_the_largest_similarities():
    gallery, bank = unit(30, 0), unit(50, 1)
    slow = [float(np.sort([float(item @ query) for query in bank])[-7:].mean()) for item in gallery]
    for chunk in (4, 1000):
        np.testing.assert_allclose(hubness(gallery, bank, neighbours=7, chunk=chunk), slow, rtol=1e-5)
    whole = (gallery @ bank.T).mean(1)  # a bank smaller than the neighbours asked for counts whole
    torch.testing.assert_close(hubness(gallery, bank, neighbours=500), whole)


def test_products_of_corrected_vectors_are_the_corrected_scores():
    queries, gallery, bank = unit(5, 0), unit(9, 1), unit(20, 2)
    q, g = corrected(queries, gallery, bank, neighbours=4, weight=0.75)
    expected = queries @ gallery.T - 0.75 * hubness(gallery, bank, neighbours=4)[None]
    torch.testing.assert_close(q @ g.T, expected)


def test_a_hub_gives_way_to_the_right_items():
    queries, bank = unit(200, 3, 16), unit(400, 4, 16)
    shift = F.normalize(torch.ones(16), dim=0)
    queries, bank = (F.normalize(x + shift, dim=1) for x in (queries, bank))  # all queries lie to one side
    gallery = F.normalize(queries + 1.0 * unit(200, 5, 16), dim=1)
    hubs = F.normalize(shift + 0.05 * unit(20, 6, 16), dim=1)
    gallery, groups = torch.cat([gallery, hubs]), np.arange(220)
    plain = (ranks(queries, gallery, groups[:200], groups) == 1).mean()
    better = (ranks(*corrected(queries, gallery, bank, neighbours=32), groups[:200], groups) == 1).mean()
    assert better > plain + 0.1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 8\) and \(3, 4\)"):
        hubness(unit(3, 0), unit(3, 0, 4))
    with pytest.raises(ValueError, match="at least 1 neighbour, got 0 and 128"):
        hubness(unit(3, 0), torch.zeros(0, 8))


def test_of_a_store_with_splits_only_the_training_split_is_a_bank(tmp_path):
    latents = np.arange(12, dtype=np.float32).reshape(6, 2)
    splits = ["train", "dev", "train", "test", "train", "val"]
    with_splits = write_latents(tmp_path / "a", latents, modality="text", name="toy", splits=splits)
    assert bank_items(with_splits).tolist() == [0, 2, 4]
    assert bank_items(write_latents(tmp_path / "b", latents, modality="text", name="toy")).tolist() == list(range(6))
    with pytest.raises(ValueError, match="no training latents"):
        bank_items(write_latents(tmp_path / "c", latents, modality="text", name="toy", splits=["dev"] * 6))
