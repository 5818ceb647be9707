"""The named recipes of ``fusemix train``: which adapters, how wide, and what fills the shared space.

``views`` is a closed form (CCA, ridge) beside three trained paths, each with its own view of the latents; ``two-path``
a closed form beside one trained path; ``paper`` the paper's adapters alone; ``closed-form`` the closed form alone,
which takes seconds and has nothing to train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fusemix.encoder_identity import EncoderInfo
from fusemix.model.config import VIEWS, ModelConfig, TrainConfig

RecipeName = Literal["views", "two-path", "paper", "closed-form"]
_RIDGE = TrainConfig().closed_form_ridge
_STEPS = 4  # of an epoch, so that a few hundred pairs take more than one
_HELD_OUT = 200  # groups to validate on, but at least 5 % and at most 30 % of them


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Default settings of a named recipe.

    Attributes:
        embed_dim: Width of the shared space.
        expansion: Hidden width of a block / the width it reads.
        closed_form_ridge: Of the closed form's covariances.
        views: Of the trained paths; empty for one path.
        closed_form: Whether a closed form stands beside the trained paths.
        trained: Whether there is a trained path.
    """

    embed_dim: int = 512
    expansion: float = 4.0
    closed_form_ridge: float = _RIDGE
    views: tuple[str, ...] = ()
    closed_form: bool = True
    trained: bool = True


RECIPES: dict[RecipeName, Recipe] = {
    "views": Recipe(embed_dim=1024, expansion=1.0, closed_form_ridge=1.0, views=VIEWS),
    "two-path": Recipe(),
    "paper": Recipe(closed_form=False),
    "closed-form": Recipe(embed_dim=256, closed_form_ridge=1.0, trained=False),
}


def recipe_config(
    recipe: RecipeName,
    *,
    latent_dims: Mapping[str, int],
    encoders: Mapping[str, EncoderInfo],
    embed_dim: int | None = None,
    expansion: float | None = None,
    closed_form_dim: int | None = None,
    whiten: bool = True,
    **shape: Any,
) -> ModelConfig:
    """Make the configuration of a model by a recipe; arguments that are None take the recipe's value.

    Args:
        recipe: Its name.
        latent_dims: Modality -> width of its latents, in any order; the model has image, text and audio first.
        encoders: Modality -> identity of its encoder.
        embed_dim: Width of the shared space.
        expansion: Hidden width of a block / the width it reads.
        closed_form_dim: Of embed_dim, filled by the closed form; by default a path's share.
        whiten: Whether the trained path of ``two-path`` reads whitened components, not plain ones.
        shape: Further fields of :class:`ModelConfig`.

    Raises:
        ValueError: If the widths cannot be shared, or the recipe has no closed form to fill ``closed_form_dim``.
    """
    chosen = RECIPES[recipe]
    width = chosen.embed_dim if embed_dim is None else embed_dim
    first = [m for m in ("image", "text", "audio") if m in latent_dims]
    order = first + sorted(set(latent_dims) - set(first))
    if closed_form_dim and not chosen.closed_form:
        raise ValueError("closed_form_dim belongs to the recipes views and two-path; the paper's adapters have none.")
    if chosen.views and not whiten:
        raise ValueError("The recipe views names its components itself; whiten=False belongs to the recipe two-path.")
    if not chosen.trained:
        width = closed_form_dim = min(width, *latent_dims.values())
    if closed_form_dim is None:
        closed_form_dim = _share(chosen, width, latent_dims)
    return ModelConfig(
        latent_dims={m: latent_dims[m] for m in order},
        encoders={m: encoders[m] for m in order},
        embed_dim=width,
        expansion=chosen.expansion if expansion is None else expansion,
        closed_form_dim=closed_form_dim,
        views=chosen.views if whiten or not chosen.closed_form else ("components",),
        **shape,
    )


def train_config(recipe: RecipeName, *, pairs: int, groups: int, **changes: Any) -> TrainConfig:
    """Make the settings of a run on few or many pairs: at least four steps an epoch, and enough pairs to validate on.

    Args:
        recipe: Its name.
        pairs: Number of pairs.
        groups: Number of groups among them.
        changes: Fields of :class:`TrainConfig` to set otherwise.
    """
    held_out = changes.get("val_fraction", min(0.3, max(0.05, _HELD_OUT / groups)))
    settings = {
        "batch_size": min(TrainConfig().batch_size, max(32, int(pairs * (1 - held_out)) // _STEPS)) // 2 * 2,
        "val_fraction": held_out,
        "closed_form_ridge": RECIPES[recipe].closed_form_ridge,
    }
    return TrainConfig(**(settings | changes))


def recipe_of(model: ModelConfig) -> RecipeName:
    """Return the recipe that makes adapters of this model's kind."""
    if not model.closed_form_dim:
        return "paper"
    if not model.trained_parts:
        return "closed-form"
    return "views" if model.views == VIEWS else "two-path"


def _share(recipe: Recipe, embed_dim: int, latent_dims: Mapping[str, int]) -> int:
    """Return the width of the closed form: a path's share, at most the latents' width, the rest divided evenly."""
    if not recipe.closed_form:
        return 0
    trained = max(1, len(recipe.views))
    widest = min(embed_dim // (trained + 1), *latent_dims.values())
    even = [width for width in range(1, widest + 1) if (embed_dim - width) % trained == 0]
    if not even:
        raise ValueError(
            f"An embed_dim of {embed_dim} cannot be shared by a closed form of at most {widest} dimensions and "
            f"{trained} trained paths; choose another embed_dim, or the recipe two-path."
        )
    return even[-1]
