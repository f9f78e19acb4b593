"""``robbench evaluate``: somebody's own model through attacks, natural perturbations and the audit."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robbench.cli import _command
from robbench.core.errors import RequestError
from robbench.core.safe_text import visible

if TYPE_CHECKING:
    from robbench.api.report import Report


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas, as 0.485,0.456,0.406."""
    from robbench.core.component import number

    try:
        return tuple(number(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, as in 0.5,0.5,0.5") from None


def _sizes(given: list[str]) -> dict[str, list[str]]:
    """Sizes by norm."""
    pairs = [text.rpartition(":") for text in given]
    return {norm or "linf": sizes.split(",") for norm, _, sizes in pairs}


def _arguments(given: list[str]) -> dict[str, Any]:
    """Keyword arguments as TOML writes values; what is none of TOML's is text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise RequestError(f'"{text}" is not NAME=VALUE, as in width=32', "--argument")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value
    return found


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="file.py:factory, package.module:factory, torchvision:NAME, timm:NAME, robustbench:NAME, or a "
        "TorchScript, torch.export (.pt2) or ONNX file",
    )
    data = parser.add_argument_group("images")
    data.add_argument(
        "--dataset",
        metavar="NAME",
        help="name of a data set (robbench list dataset), an npz or parquet file, or a folder of images "
        "(default: what --data-dir names)",
    )
    _command.add_data(data)
    data.add_argument("--limit", type=_command.positive, metavar="N", help="at most N images per condition, stratified")
    network = parser.add_argument_group("the model")
    network.add_argument("--weights", default="", metavar="FILE", help="weights for what the factory makes")
    network.add_argument(
        "--argument", action="append", default=[], metavar="NAME=VALUE", help="of the factory; repeatable"
    )
    network.add_argument(
        "--normalization",
        default="",
        metavar="NAME",
        help="that it was trained with: none, half, imagenet, cifar10, ...",
    )
    network.add_argument(
        "--mean", type=_numbers, default=(), metavar="LIST", help="or: subtracted, as 0.485,0.456,0.406"
    )
    network.add_argument("--std", type=_numbers, default=(), metavar="LIST", help="and divided by, per channel")
    network.add_argument(
        "--input-size", type=_command.positives, default=(), metavar="H,W", help="images are resized to it in the model"
    )
    network.add_argument(
        "--answers",
        choices=("auto", "gradients", "scores", "labels"),
        default="auto",
        help="the most that attacks may ask (default: what it gives)",
    )
    conditions = parser.add_argument_group("conditions")
    conditions.add_argument(
        "--preset",
        choices=("quick", "standard", "full"),
        default="standard",
        help="quick: a minute; standard: the ensemble, the audit, natural perturbations; full: AutoAttack and L2, L1 "
        "too (default: standard)",
    )
    conditions.add_argument(
        "--attack",
        action="append",
        default=[],
        metavar="CONDITION",
        help="as strong@8/255, in place of a preset's; repeatable",
    )
    conditions.add_argument(
        "--eps",
        action="append",
        default=[],
        metavar="[NORM:]LIST",
        help="sizes of change in place of the data set's, the reference last, as 2/255,8/255 or l2:0.5; repeatable",
    )
    conditions.add_argument("--audit", action=argparse.BooleanOptionalAction, help="with or without the audit's checks")
    conditions.add_argument("--seed", type=int, default=0, metavar="N", help="of the attacks (default: 0)")
    _command.add_plugins(conditions)
    results = parser.add_argument_group("results")
    results.add_argument("--name", metavar="NAME", help="what the model is called")
    results.add_argument("--save", type=_command.path, metavar="DIR", help="write the report's files there as well")
    results.add_argument("--json", action="store_true", help="print the report as JSON")
    results.add_argument("--keep-images", action="store_true", help="keep all attacked images, not rounded")
    results.add_argument(
        "--fail-below",
        action="append",
        default=[],
        metavar="WHAT=PERCENT",
        help="exit with 1 if it is less, as linf:8/255=40 or clean=90; repeatable",
    )
    _command.add_store(results)
    running = parser.add_argument_group("how")
    _command.add_device(running)
    running.add_argument(
        "--cell-timeout", type=_command.seconds, metavar="TIME", help="most time for a condition (24h)"
    )
    running.add_argument("--fresh", action="store_true", help="do again what the store holds of it")


def _action(options: argparse.Namespace) -> int:
    from robbench.api.evaluation import evaluate
    from robbench.api.thresholds import read_threshold
    from robbench.cli.run import watched
    from robbench.execution.runner import unwatched

    for threshold in options.fail_below:
        read_threshold(threshold)
    if options.dataset is None and options.data_dir is None:
        raise RequestError("which images? name a data set, a file or a folder, as --dataset cifar10", "--dataset")
    report = evaluate(
        options.model,
        options.dataset if options.dataset is not None else Path(options.data_dir),
        attacks=options.attack,
        preset=options.preset,
        audit=options.audit,
        eps=_sizes(options.eps),
        name=options.name,
        normalization=options.normalization,
        mean=options.mean,
        std=options.std,
        input_size=options.input_size,
        answers=options.answers,
        weights=options.weights,
        arguments=_arguments(options.argument),
        out=options.out,
        limit=options.limit,
        seed=options.seed,
        data_dir=options.data_dir,
        device=options.device,
        deterministic=options.deterministic,
        plugins=options.plugin,
        keep_images=options.keep_images,
        fresh=options.fresh,
        timeout=options.cell_timeout,
        thresholds=options.fail_below,
        watch=unwatched if options.json else watched,
    )
    return _shown(report, options)


def _shown(report: Report, options: argparse.Namespace) -> int:
    from robbench.api.frames import plain_data
    from robbench.api.place import places
    from robbench.api.thresholds import below

    if options.save is not None:
        report.save(options.save)
    missed = [text for threshold in options.fail_below if (text := below(report, threshold))]
    failed = [record for record, _ in report.cells if record.status == "failed"]
    if options.json:
        found = {**plain_data(report), "places": [*places(report, options.out)], "missed": missed}
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(visible(report.summary(), keep="\n"))
        for line in places(report, options.out):
            print(visible(line))
        print(visible(f"Report: {options.out / 'leaderboards' / report.name / 'index.html'}"))
    for record in failed:
        print(f"robbench: failed: {visible(f'{record.spec.condition.label}: {record.reason}')}", file=sys.stderr)
    for text in missed:
        print(f"robbench: missed: {visible(text)}", file=sys.stderr)
    return 1 if failed or missed else 0


COMMAND = _command.Command(
    place=5,
    summary="put a model of your own to attacks and show how it holds up",
    about="Evaluates somebody's own network: clean accuracy, natural perturbations, attacks, the audit. Shows a report "
    "and writes its board. What the store holds is not done again.",
    examples=(
        (
            "robbench evaluate net.py:make --dataset cifar10 --preset quick",
            "a first look at what make() in net.py makes",
        ),
        (
            "robbench evaluate timm:resnet18 --weights best.safetensors --dataset photos/",
            "a fine-tuned network on a folder",
        ),
        ("robbench evaluate net.onnx --dataset test.npz --attack strong@8/255", "one attack, images from arrays"),
    ),
    options=_options,
    action=_action,
    done="0 all done",
    failed="1 a condition failed, or a threshold of --fail-below was missed",
)
