"""Curves of a training run: TensorBoard events during the run, a plot at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusemix.extras import extra
from fusemix.files import write_atomic
from fusemix.training.trainer import Progress


class TensorBoard:
    """Loss, temperature, learning rate and validation recall of a run as TensorBoard events.

    Args:
        folder: Folder for the events; created at the first step.

    Raises:
        ImportError: If the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        with extra("tensorboard", "Writing TensorBoard events"):
            from torch.utils.tensorboard import SummaryWriter
        self._open, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def add(self, p: Progress) -> None:
        """Write one step; the first step of a resumed run replaces events of later steps."""
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=p.step)
        values = {"loss": p.loss, "temperature": p.temperature, "learning_rate": p.learning_rate}
        values |= {f"recall_at_1/{key}": value for key, value in (p.recall or {}).items()}
        for name, value in values.items():
            self._writer.add_scalar(name, value, p.step)

    def close(self) -> None:
        """Flush the events."""
        if self._writer is not None:
            self._writer.close()


def plot(history: list[dict[str, Any]], path: Path) -> None:
    """Draw loss, temperature and validation recall by epoch.

    Args:
        history: Of a :class:`~fusemix.training.trainer.Result`.
        path: The PNG to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    with extra("plots", "Drawing the curves of a training"):
        import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    epochs = [entry["epoch"] for entry in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(epochs, [entry["loss"] for entry in history], color="#1f7a5c", marker="o", markersize=3)
    left.set(xlabel="epoch", ylabel="loss (training)")
    cooler = left.twinx()
    cooler.plot(epochs, [entry["temperature"] for entry in history], color="#b0623a", linestyle="--")
    cooler.set_ylabel("temperature", color="#b0623a")
    for key in sorted(k for k in history[0] if "/" in k) if history else ():
        values = [100 * entry[key] for entry in history]
        right.plot(epochs, values, marker="o", markersize=3, label=key.rsplit("/", 1)[-1].replace("_", " "))
    right.set(xlabel="epoch", ylabel="validation recall@1, %")
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    left.spines["top"].set_visible(False)
    cooler.spines["top"].set_visible(False)
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    plt.close(figure)
