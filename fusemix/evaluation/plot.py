"""Plot of the result of :func:`fusemix.evaluation.diagnose.diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusemix.extras import extra
from fusemix.files import write_atomic


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw bars: the closed form's recall, mutual k-NN and CKA of every combination, best recall on top.

    Args:
        result: Of :func:`fusemix.evaluation.diagnose.diagnose`.
        path: The PNG to write.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    with extra("plots", "Drawing the figures"):
        import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    combinations = result["combinations"][::-1]
    names = ["\n".join(c["encoders"].values()) for c in combinations]
    figure, axes = plt.subplots(
        1, 3, sharey=True, figsize=(11, 1.4 + 0.55 * len(names)), layout="constrained", squeeze=False
    )
    panels = (
        ("cca_recall_at_1", "CCA recall@1, held out (line: 1 s.e.)"),
        ("mutual_knn", "mutual k-NN"),
        ("cka", "CKA, debiased"),
    )
    for axis, (key, title) in zip(axes[0], panels, strict=True):
        error = [c["cca_recall_error"] for c in combinations] if key == "cca_recall_at_1" else None
        axis.barh(names, [c[key] for c in combinations], xerr=error, height=0.6, color="#4477aa", ecolor="#222222")
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=130, format="png"))
    plt.close(figure)
