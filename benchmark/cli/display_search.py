"""What people see in the terminal of a search: its trials, the best of them, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from robbench.cli.display import Terminal
from robbench.training.hyperparameter_search import Search, Trial, ranked, standard_error


def show_trial(trial: Trial, count: int) -> None:
    """One line on a trial that has just been done."""
    result = trial.state if trial.balanced_accuracy is None else f"{100 * trial.balanced_accuracy:.1f} %"
    recipe = trial.recipe
    parts = [recipe.optimizer, f"lr {recipe.lr:g}", recipe.schedule, f"weight decay {recipe.weight_decay:g}"]
    line = f"[{trial.number}/{count}] {', '.join(parts)}, batches of {recipe.batch_size}: {result}"
    Terminal().print(Text(line), soft_wrap=True)


def show_search(wanted: Search, trials: Sequence[Trial]) -> bool:
    """The best trials of a search, and what they can be trusted with. Returns whether there are any."""
    console = Terminal()
    best = ranked(trials)
    files = Text(f"Files: {wanted.folder / 'trials.csv'}")
    if not best:
        console.print(Text(f"{wanted.label}: all {len(trials)} trials diverged"), files, sep="\n", soft_wrap=True)
        return False
    title = Text(f"\n{wanted.label}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("trial", "accuracy", "loss", "optimizer", "lr", "schedule", "decay", "batch"):
        table.add_column(heading, justify="left" if heading in ("optimizer", "schedule") else "right", no_wrap=True)
    for trial in best[:5]:
        recipe = trial.recipe
        figures = f"{100 * (trial.balanced_accuracy or 0):.1f} %", f"{trial.validation_loss:.3g}", recipe.optimizer
        rest = f"{recipe.lr:g}", recipe.schedule, f"{recipe.weight_decay:g}", str(recipe.batch_size)
        table.add_row(str(trial.number), *figures, *rest)
    console.print(table)
    highest = best[0].balanced_accuracy or 0.0
    error = standard_error(highest, wanted.validation)
    near = sum((trial.balanced_accuracy or 0) >= highest - error for trial in best)
    seeds = f", mean of {len(wanted.jobs)} seeds" if len(wanted.jobs) > 1 else ""
    diverged = len(trials) - len(best)
    console.print(
        f"{len(trials)} trials{f', {diverged} of them diverged' if diverged else ''}. Accuracy is balanced, on "
        f"{sum(wanted.validation)} validation images{seeds}; no test image had a part in it. Its standard error is "
        f"about {100 * error:.1f} points: that near to the best are {near - 1} others; and the best figure of many is "
        "too high for having been chosen.",
        highlight=False,
    )
    console.print(Text("In the grid, for this row:"))
    console.print(Text(best[0].recipe.toml()), files, sep="\n", soft_wrap=True)
    return True
