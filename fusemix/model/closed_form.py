"""The closed-form part of an adapter: whitening, CCA for the first pair, ridge regression for later modalities.

On small data the linear maps alone come near a trained adapter, and both together beat either
(docs/results, ``scripts.studies``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fusemix.model.adapters import FusionModel, MultiPathAdapter
from fusemix.model.cca import canonical_maps, decompose, inverse_root, regularised, ridge_map
from fusemix.number_range import check_varied
from fusemix.stopping import Stopped

MAX_PAIRS = 200_000  # pairs read; more hardly change the covariances of a few thousand dimensions
CHUNK = 8192  # pairs held in float64 at once
ROOT_FLOOR = 1e-4  # of a latent's typical value: below it the root view is linear
REGRESSION_RIDGE = 0.1  # regression onto a fixed target needs less regularisation than CCA

Latents = np.ndarray  # (N, D_x) float32


def fit_closed_form(
    model: FusionModel,
    pairs: list[dict[str, Latents]],
    *,
    ridge: float = 2.0,
    regression_ridge: float = REGRESSION_RIDGE,
    known: tuple[str, ...] = (),
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Fit the closed-form part of every multi-path adapter of ``model``, in place.

    The first two modalities met get a regularised CCA on standardised latents; every later one the
    ridge regression onto the linear embedding of a modality that is fitted. All get what the views of their trained
    paths need: principal components, whitened or as they are, and the floor of the root. Nothing here is random.

    Args:
        model: With ``config.closed_form_dim > 0``; otherwise nothing is done.
        pairs: For each set, modality -> latents of training pairs, row by row; at most
            :data:`MAX_PAIRS` rows are used.
        ridge: Of CCA and whitening; added to each standardised covariance's diagonal, as a multiple of
            the mean variance.
        regression_ridge: The same of the regression.
        known: Modalities whose adapters are fitted already and stay as they are.
        should_stop: Asked before every chunk of pairs and every decomposition; the longest of these, of
            4,096 x 4,096 values, is still finished.

    Raises:
        Stopped: If ``should_stop`` returned true; the model is then unusable.
        ValueError: If a set names modalities none of which can be reached from the fitted ones, or all latents of one
            are equal.

    Source:
        Hotelling 1936 (CCA). Whitened components before a contrastive head and the ensemble are ours.
    """
    if not model.config.closed_form_dim:
        return

    def go_on() -> None:
        if should_stop and should_stop():
            raise Stopped

    fitted = set(known)
    for latents in pairs:
        for modality, values in latents.items():
            check_varied(values.__getitem__, np.arange(min(len(values), MAX_PAIRS)), f"The {modality} latents")
        for a, b in itertools.combinations(latents, 2):
            if not fitted:
                _fit_cca(model, a, b, latents[a][:MAX_PAIRS], latents[b][:MAX_PAIRS], ridge, go_on)
                fitted |= {a, b}
            for new, pivot in ((a, b), (b, a)):
                if new not in fitted and pivot in fitted:
                    _fit_ridge(
                        model,
                        new,
                        pivot,
                        latents[new][:MAX_PAIRS],
                        latents[pivot][:MAX_PAIRS],
                        (regression_ridge, ridge),
                        go_on,
                    )
                    fitted.add(new)
    if missing := [m for latents in pairs for m in latents if m not in fitted]:
        raise ValueError(
            f"No closed form for {missing}: no set of pairs joins them to {sorted(fitted)}; name the set that "
            "shares a modality with the earlier ones next."
        )


def _fit_cca(
    model: FusionModel, a: str, b: str, x: Latents, y: Latents, ridge: float, go_on: Callable[[], None]
) -> None:
    (x_mean, x_scale), (y_mean, y_scale) = _standard(x), _standard(y)
    xx, xy, yy = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], y.shape[1])), np.zeros((y.shape[1],) * 2)
    for part in _chunks(len(x)):
        go_on()
        u, v = (x[part] - x_mean) / x_scale, (y[part] - y_mean) / y_scale
        xx += u.T @ u / len(x)
        xy += u.T @ v / len(x)
        yy += v.T @ v / len(x)
    parts_x = decompose(xx)
    white_x = inverse_root(*parts_x, ridge)
    go_on()
    parts_y = decompose(yy)
    white_y = inverse_root(*parts_y, ridge)
    go_on()
    map_x, map_y = canonical_maps(white_x, xy, white_y, model.config.closed_form_dim)
    go_on()
    _store(model, a, x_mean, map_x / x_scale[:, None])
    _store_views(model, a, x_mean, xx, parts_x, ridge, x_scale)
    go_on()
    _store(model, b, y_mean, map_y / y_scale[:, None])
    _store_views(model, b, y_mean, yy, parts_y, ridge, y_scale)


def _fit_ridge(
    model: FusionModel,
    new: str,
    pivot: str,
    x: Latents,
    y: Latents,
    ridges: tuple[float, float],
    go_on: Callable[[], None],
) -> None:
    ridge, whiten_ridge = ridges
    adapter = _adapter(model, pivot)
    mean, scale = _standard(x)
    y_mean, linear = adapter.mean.double().numpy(), adapter.linear.double().numpy()
    dim = model.config.closed_form_dim
    xx, xt = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], dim))
    for part in _chunks(len(x)):
        go_on()
        u = (x[part] - mean) / scale
        target = (y[part] - y_mean) @ linear
        target /= np.maximum(np.linalg.norm(target, axis=1, keepdims=True), 1e-12)
        xx += u.T @ u / len(x)
        xt += u.T @ target / len(x)
    go_on()
    _store(model, new, mean, ridge_map(xx, xt, ridge) / scale[:, None])
    go_on()
    _store_views(model, new, mean, xx, None, whiten_ridge, scale)


def _store(model: FusionModel, modality: str, mean: np.ndarray, linear: np.ndarray) -> None:
    adapter = _adapter(model, modality)
    adapter.mean.copy_(_tensor(mean))
    adapter.linear.copy_(_tensor(linear))


def _store_views(
    model: FusionModel,
    modality: str,
    mean: np.ndarray,
    covariance: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray] | None,
    ridge: float,
    scale: np.ndarray,
) -> None:
    """Set what the views of a modality's latents need.

    Args:
        model: Changed in place.
        modality: Of the latents.
        mean: Of the latents, (D_x,).
        covariance: Of the standardised latents.
        parts: Its :func:`decompose`, if that is known.
        ridge: Of the whitening.
        scale: By which the latents were divided, (D_x,).
    """
    config, adapter = model.config, _adapter(model, modality)
    width = min(config.whiten_dim, len(covariance))
    if "whitened" in config.views:
        values, vectors = parts or decompose(covariance)
        adapter.whiten.copy_(_tensor(_whitened(values, vectors, width, ridge) / scale[:, None]))
    if "components" in config.views:
        _, vectors = decompose(covariance * scale[:, None] * scale)  # of the latents themselves: a rotation
        adapter.rotate.copy_(_tensor(vectors[:, ::-1][:, :width]))
    if "root" in config.views:
        typical = float(np.sqrt(np.mean(mean**2 + covariance.diagonal() * scale**2)))
        adapter.floor.copy_(torch.tensor(ROOT_FLOOR * typical))


def _whitened(values: np.ndarray, vectors: np.ndarray, width: int, ridge: float) -> np.ndarray:
    """Standardised latents -> their first principal components, whitened, of unit mean variance: (D_x, width)."""
    sums = regularised(values, ridge)[::-1][:width]
    values, vectors = values[::-1][:width], vectors[:, ::-1][:, :width]
    gain = 1 / np.sqrt(sums)
    gain /= np.sqrt(np.mean(np.maximum(values, 0) * gain**2))
    return np.asarray(vectors * gain)


def _adapter(model: FusionModel, modality: str) -> MultiPathAdapter:
    adapter = model.adapters[modality]
    assert isinstance(adapter, MultiPathAdapter)
    return adapter


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def _standard(x: Latents) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale by dimension, (D_x,) float64: the deviation, at least a tenth of the typical one."""
    mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    typical = np.sqrt(np.mean(deviation**2))
    return mean, np.maximum(deviation, 0.1 * typical)


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))
