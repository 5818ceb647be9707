import numpy as np
import pytest
from scipy.linalg import sqrtm

from fusemix.model.cca import fit_cca, ridge_map


def test_the_first_direction_is_the_shared_one():
    """Two views share one coordinate exactly; its canonical correlation is 1 and it comes first."""
    rng = np.random.default_rng(0)
    shared, x, y = rng.normal(size=5000), rng.normal(size=(5000, 4)), rng.normal(size=(5000, 3))
    x[:, 2], y[:, 1] = 3 * shared, -0.5 * shared
    cca = fit_cca(x, y, dim=1, ridge=0.0)
    first = cca.maps[0][:, 0] / np.linalg.norm(cca.maps[0][:, 0])
    assert abs(first[2]) == pytest.approx(1, abs=1e-3)
    assert np.corrcoef((x @ cca.maps[0])[:, 0], (y @ cca.maps[1])[:, 0])[0, 1] == pytest.approx(1, abs=1e-6)


def test_directions_are_weighted_by_the_root_of_their_correlation():
    """Whitened directions have variance 1 and covary by their correlation c; weighted, they have c and c squared."""
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(800, 4))
    x, y = (shared @ rng.normal(size=(4, d)) + rng.normal(size=(800, d)) for d in (6, 5))
    cca = fit_cca(x, y, dim=4, ridge=0.0)
    a, b = (x - cca.means[0]) @ cca.maps[0], (y - cca.means[1]) @ cca.maps[1]
    correlation = np.diag(a.T @ a / 800)
    assert 1 > correlation[0] > 1.2 * correlation[-1] > 0
    for made, expected in ((a.T @ a, correlation), (b.T @ b, correlation), (a.T @ b, correlation**2)):
        np.testing.assert_allclose(made / 800, np.diag(expected), atol=1e-9)


def test_the_fit_is_the_written_formula_whatever_the_latents_size_and_place():
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(300, 3))
    x, y = (5 * shared @ rng.normal(size=(3, d)) + 2 * rng.normal(size=(300, d)) + 7 for d in (6, 4))
    u, v = x - x.mean(0), y - y.mean(0)
    roots = []
    for z in (u, v):
        covariance = z.T @ z / 300
        roots.append(
            np.linalg.inv(sqrtm(covariance + 0.4 * np.trace(covariance) / z.shape[1] * np.eye(z.shape[1])).real)
        )
    left, correlation, right = np.linalg.svd(roots[0] @ (u.T @ v / 300) @ roots[1])
    a, b = u @ roots[0] @ left[:, :3] * correlation[:3] ** 0.5, v @ roots[1] @ right[:3].T * correlation[:3] ** 0.5
    expected = a @ b.T / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    cca = fit_cca(x, y, dim=3, ridge=0.4)
    np.testing.assert_allclose(cca.embed(0, x) @ cca.embed(1, y).T, expected, atol=1e-5)
    with pytest.raises(ValueError, match="same number of pairs"):
        fit_cca(x, y[:-1], dim=3)


def test_a_ridge_regression_shrinks_by_the_latents_own_variance():
    covariance, cross = np.diag([4.0, 16.0]), np.array([[4.0], [16.0]])  # y = x1 + x2; mean variance 10
    np.testing.assert_allclose(ridge_map(covariance, cross, 0.2), [[4 / 6], [16 / 18]])


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
