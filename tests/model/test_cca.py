import numpy as np
import pytest

from fusemix.model.cca import fit_cca


def test_the_first_direction_is_the_shared_one():
    """Two views share one coordinate exactly; its canonical correlation is 1 and it comes first."""
    rng = np.random.default_rng(0)
    shared, x, y = rng.normal(size=5000), rng.normal(size=(5000, 4)), rng.normal(size=(5000, 3))
    x[:, 2], y[:, 1] = 3 * shared, -0.5 * shared
    cca = fit_cca(x, y, dim=1, ridge=0.0)
    first = cca.maps[0][:, 0] / np.linalg.norm(cca.maps[0][:, 0])
    assert abs(first[2]) == pytest.approx(1, abs=1e-3)
    assert np.corrcoef((x @ cca.maps[0])[:, 0], (y @ cca.maps[1])[:, 0])[0, 1] == pytest.approx(1, abs=1e-6)


def test_pairs_are_retrieved_and_embeddings_are_unit_length():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(400, 6))
    x, y = hidden @ rng.normal(size=(6, 20)), hidden @ rng.normal(size=(6, 9))
    cca = fit_cca(x[:300], y[:300], dim=6, ridge=0.01)
    a, b = cca.embed(0, x[300:]), cca.embed(1, y[300:])
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)
    assert ((a @ b.T).argmax(axis=1) == np.arange(100)).mean() > 0.9
    with pytest.raises(ValueError, match="between 1 and 9"):
        fit_cca(x, y, dim=10)
