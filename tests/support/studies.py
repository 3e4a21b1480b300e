"""Results of a study that nobody ran."""

from pathlib import Path

from tests.support.histories import epochs
from training.models.diagnostics import AtStart
from training.study.measures import MEASURES
from training.study.results import RunResult
from training.study.spec.grid import Study


def invented_results(study: Study, folder: Path) -> list[RunResult]:
    """Each level a tenth better than the one before, by nearly the same with each seed; the last one diverges."""
    levels = [name for axis in study.axes.values() for name in axis]
    results = []
    for cell in study.cells():
        place = levels.index(next(iter(cell.levels.values())))
        lost = place == len(levels) - 1
        score = None if lost else 0.1 * place + 0.001 * cell.seed * (1 + 0.01 * place)
        layers = [
            AtStart(layer="1.1", output_variance=10.0**place, gradient_variance=1.0, weight_gradient_norm=1.0)
        ] * 3
        results.append(
            RunResult(
                cell=cell,
                folder=folder / "runs" / cell.name,
                outcome="diverged" if lost else "done",
                reason="the loss is nan" if lost else "",
                values=dict.fromkeys(MEASURES) | {"val_score": score},
                epochs=[] if score is None else epochs(0.1, score),
                at_start=layers,
            )
        )
    return results
