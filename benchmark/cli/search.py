"""``robbench search``: a recipe for one row of a grid, chosen on validation images."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robbench.cli import _command

if TYPE_CHECKING:
    from robbench.training.hyperparameter_search import Search
    from robbench.training.trial_table import Trial


def _options(parser: argparse.ArgumentParser) -> None:
    _command.add_request(parser)
    searched = parser.add_argument_group("search")
    searched.add_argument("--row", metavar="LABEL", help="the model to train (default: the grid's first)")
    searched.add_argument(
        "--trials", type=_command.positive, default=20, metavar="N", help="recipes to try in all (default: 20)"
    )
    searched.add_argument(
        "--batch-sizes", type=_command.positives, default=(), metavar="LIST", help="to choose from, as 16,64,256"
    )
    searched.add_argument("-q", "--quiet", action="store_true", help="only errors and the best recipe")


def _action(options: argparse.Namespace) -> int:
    from robbench.planning.inputs import read_request
    from robbench.results.store import Store

    Store(options.out).check()
    # A plugin may change the working directory when it is loaded.
    inputs = read_request(_command.request(options).absolute())
    from robbench.execution import processes
    from robbench.execution.portion import check_plan
    from robbench.execution.trial import train_apart
    from robbench.planning.planner import make_plan
    from robbench.training.hyperparameter_search import prepare, search

    processes.prepare()
    plan = make_plan(inputs)
    check_plan(plan)
    wanted = prepare(plan, options.row, options.batch_sizes)
    show = (lambda trial: None) if options.quiet else functools.partial(_show_trial, count=options.trials)
    trials = search(wanted, options.trials, show, train_apart)
    return 0 if _show_best(wanted, trials, options.quiet) else 1


COMMAND = _command.Command(
    place=60,
    summary="search a training recipe on validation images",
    about="Tries recipes (optimizer, learning rate, schedule, weight decay) for one model of a grid and keeps the one "
    "with the highest balanced accuracy on validation images; test images are not touched. A search goes on where it "
    "stopped.",
    examples=(
        ("robbench search --grid quick --trials 30", "30 recipes for the grid's first model"),
        ("robbench search --row 'angular · fgm' --batch-sizes 16,64", "for another model, batch size included"),
    ),
    options=_options,
    action=_action,
    failed="1 all trials diverged",
)


def _show_trial(trial: Trial, count: int) -> None:
    from robbench.cli._display import Terminal

    result = trial.state if trial.balanced_accuracy is None else f"{100 * trial.balanced_accuracy:.1f} %"
    recipe = trial.recipe
    parts = [recipe.optimizer, f"lr {recipe.lr:g}", recipe.schedule, f"weight decay {recipe.weight_decay:g}"]
    Terminal().say(f"[{trial.number}/{count}] {result}  {', '.join(parts)}, batch {recipe.batch_size}")


def _show_best(wanted: Search, trials: Sequence[Trial], quiet: bool) -> bool:
    """The best trials and how far to trust them, or the best recipe alone; returns whether there are any."""
    from robbench.cli._display import Terminal, table
    from robbench.training.hyperparameter_search import ranked, standard_error

    console = Terminal()
    best = ranked(trials)
    if not best:
        console.say(f"{wanted.label}: all {len(trials)} trials diverged\nTrials: {wanted.folder / 'trials.csv'}")
        return False
    if quiet:
        console.say(best[0].recipe.toml())
        return True
    highest = best[0].balanced_accuracy or 0.0
    error = standard_error(highest, wanted.validation)
    near = sum((trial.balanced_accuracy or 0) >= highest - error for trial in best) - 1
    diverged = len(trials) - len(best)
    seeds = f", mean of {len(wanted.jobs)} seeds" if len(wanted.jobs) > 1 else ""

    console.print(f"\n{wanted.label}\n")
    made = table("trial", "optimizer", "schedule", numbers=("accuracy", "loss", "lr", "decay", "batch"))
    for trial in best[:5]:
        recipe = trial.recipe
        figures = f"{100 * (trial.balanced_accuracy or 0):.1f} %", f"{trial.validation_loss:.3g}"
        rest = f"{recipe.lr:g}", f"{recipe.weight_decay:g}", str(recipe.batch_size)
        made.add_row(str(trial.number), recipe.optimizer, recipe.schedule, *figures, *rest)
    console.print(made)
    console.print(
        f"\nBest: {100 * highest:.1f} % balanced accuracy on {sum(wanted.validation)} validation images{seeds}, "
        f"standard error about {100 * error:.1f} points; within one of it: {near} other trials of {len(trials)}"
        f"{f' ({diverged} diverged)' if diverged else ''}. The best of many trials is biased upward. "
        "No test image was used."
    )
    console.print("\nIn the grid, for this model:")
    console.say(best[0].recipe.toml())
    console.say(f"Trials: {wanted.folder / 'trials.csv'}")
    return True
