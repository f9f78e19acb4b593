"""What every attack is held to: the referee's rules, the contract of ``Attack``, and what closed forms allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robbench.attacks._losses import margin
from robbench.conformance.rules import Broken, Finding, NotApplicable, Rule, crash, judge
from robbench.conformance.scenes import (
    CLASSES,
    COUNT,
    Bench,
    Constant,
    Linear,
    Run,
    Scene,
    describe,
    largest_gain,
    linear,
    run,
    smallest_change,
)
from robbench.core.contracts import Attack
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Norm, Threat
from robbench.evaluation.referee import change_norms


def referee(bench: Bench) -> list[Finding]:
    """The referee's rules, over every norm, size and model: one finding, or one for each that is broken."""
    count = 0
    broken: dict[str, Finding] = {}
    try:
        for scene in (bench.linear[bench.classes], bench.network[bench.classes]):
            for threat in bench.every(bench.classes):
                count += 1
                for breach in bench.run(scene, threat).breaches:
                    detail = f"{describe(threat)}: {str(breach).removeprefix(f'{breach.rule}: ')}"
                    broken.setdefault(breach.rule, Finding(breach.rule, False, detail))
    except Broken as error:
        return [Finding("the referee's rules", False, str(error))]
    except (Exception, SystemExit) as error:
        broken["the referee's rules"] = Finding("the referee's rules", False, crash(error))
    return list(broken.values()) or [Finding("the referee's rules", True, f"{count} runs in {', '.join(bench.norms)}")]


def _any_number_of_classes(bench: Bench) -> str:
    refused, usual = [], bench.classes
    for classes in sorted(CLASSES):
        threats = {threat.norm: threat for threat in bench.every(classes)}.values()
        if not threats:
            refused.append(str(classes))
        for threat in threats:
            try:
                result = bench.run(bench.linear[classes], threat)
            except (Exception, SystemExit) as error:
                raise Broken(f"{classes} classes, {describe(threat)}: {crash(error)}") from error
            if classes != usual:
                _refuse_breaches(bench, result)
    return f"refused, as it says: {', '.join(refused)} classes" if refused else ""


def _targets(bench: Bench) -> str:
    if not bench.attack.targetable:
        raise NotApplicable("the attack takes no target")
    scene = bench.linear[bench.classes]
    for threat in bench.threats(bench.classes, targeted=True):
        targets = scene.given(threat)
        nearer = _margins(scene, bench.run(scene, threat).images, targets) - _margins(scene, scene.images, targets)
        if float(nearer.mean()) < -1e-6:
            raise Broken(f"{describe(threat)}: the target's score falls, as if it were the class to leave")
    return ""


def _margins(scene: Scene, images: Tensor, labels: Tensor) -> Tensor:
    """Score of the label minus the best other one."""
    with torch.no_grad():
        return -margin(scene.model(images), labels)


def _eps_zero(bench: Bench) -> str:
    for threat in bench.bounded:
        for scene in (bench.linear[bench.classes], bench.network[bench.classes]):
            changed = bench.run(scene, replace(threat, eps=0.0)).images
            if not torch.equal(changed, scene.images):
                moved = float((changed - scene.images).abs().max())
                raise Broken(f"{describe(threat)} with eps = 0: values moved by up to {moved:.3g}")
    return ""


def _batch_and_order(bench: Bench) -> str:
    if bench.attack.global_state:
        raise NotApplicable("the attack says that it draws from global state")
    scene = bench.linear[bench.classes]
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    for threat in bench.usual:
        whole = bench.run(scene, threat).images
        for index in (order[:1], order[1:], order):
            part = run(bench.attack, scene.take(index), threat).images
            apart = float((part - whole[index]).abs().max())
            if apart > 1e-9:
                raise Broken(
                    f"{describe(threat)}: in another order, {len(index)} of {COUNT} samples at once, values differ by "
                    f"up to {apart:.3g}"
                )
    return f"batches of 1, {COUNT - 1} and {COUNT}"


def _same_seed(bench: Bench) -> str:
    for scene in (bench.linear[bench.classes], bench.network[bench.classes]):
        for threat in bench.usual:
            if not torch.equal(bench.run(scene, threat).images, run(bench.attack, scene, threat).images):
                raise Broken(f"{describe(threat)}: the same call gives other images the second time")
    return ""


def _no_gradient_outside(bench: Bench) -> str:
    scene = bench.linear[bench.classes]
    for threat in bench.usual:
        with torch.no_grad():
            images = run(bench.attack, scene, threat).images
        if not torch.allclose(images, bench.run(scene, threat).images, rtol=0, atol=1e-9):
            raise Broken(f"{describe(threat)}: the result is another one where gradients are switched off outside")
    return ""


def _nothing_left(bench: Bench) -> str:
    scene = bench.linear[bench.classes]
    model = linear(bench.classes).requires_grad_(True)
    for threat in bench.usual:
        images = scene.images.clone()
        streams = Streams.of(scene.ids, 0, "conformance")
        returned = bench.attack.bind([scene.peer]).perturb(model, images, scene.given(threat).clone(), threat, streams)
        left = {
            "the returned images still require a gradient": returned.requires_grad,
            "the images given to it require a gradient now": images.requires_grad,
            "a gradient is left in a weight that is trained": any(
                weight.grad is not None for weight in model.parameters()
            ),
        }
        for what, holds in left.items():
            if holds:
                raise Broken(f"{describe(threat)}: {what}")
    return ""


def _empty_batch(bench: Bench) -> str:
    nothing = bench.linear[bench.classes].take(torch.arange(0))
    for threat in bench.usual:
        _refuse_breaches(bench, bench.run(nothing, threat))
    return ""


def _constant_model(bench: Bench) -> str:
    scene, bias = bench.linear[bench.classes], torch.eye(bench.classes, dtype=torch.float64)[0]
    still = replace(scene, model=Constant(torch.zeros(bench.classes, 1), bias).eval(), labels=scene.labels * 0)
    for threat in bench.usual:
        _refuse_breaches(bench, bench.run(still, threat))
    return ""


def _refuse_breaches(bench: Bench, result: Run) -> None:
    """No rule of the referee is broken here that is kept to otherwise."""
    anyway = {
        breach.rule for threat in bench.usual for breach in bench.run(bench.linear[bench.classes], threat).breaches
    }
    for breach in result.breaches:
        if breach.rule not in anyway:
            raise Broken(f"{result.scene.model.num_classes} classes, {describe(result.threat)}: {breach}")


def _within_the_possible(bench: Bench) -> str:
    scene = bench.linear[bench.classes]
    threats = [threat for threat in bench.every(bench.classes) if threat.norm != "none"]
    if not threats:
        raise NotApplicable("natural perturbations have no norm")
    gains = [_best_gain(bench, threat) for threat in threats if threat.eps is not None]
    changes = [_distance(bench.run(scene, threat)) for threat in threats if threat.eps is None]
    told = {"of the largest gain: ": [gain for gain in gains if gain], "times the smallest change: ": changes}
    return "; ".join(head + ", ".join(lines) for head, lines in told.items() if lines)


def _best_gain(bench: Bench, threat: Threat) -> str:
    """No score rises above another further than truth allows; how far that is used."""
    assert threat.eps is not None
    near = bench.linear[bench.classes]
    _within_gains(bench.run(near, threat))
    if threat.targeted or not bench.attack.white_box:
        return ""
    # Nothing inside the ball misleads a model that is so sure of class 0, so no attack stops before its end.
    labels, weight = torch.zeros_like(near.labels), _linear(near).weight
    bias = torch.zeros(bench.classes, dtype=torch.float64)
    sure = replace(near, model=Linear(weight, bias).eval(), labels=labels)
    bias[0] = 2 * float(_gains(sure, labels, threat).max() - _margins(sure, near.images, labels).min())
    result = bench.run(sure, threat)
    _within_gains(result)
    with torch.no_grad():
        scores = sure.model(sure.images)
    before = _margins(sure, sure.images, labels)
    best = (scores[:, :1] - scores - _gains(sure, labels, threat))[:, 1:].amin(dim=1)
    used = (before - _margins(sure, result.images, labels)) / (before - best)
    return f"{describe(threat)} {float(used.mean()):.0%}"


def _within_gains(result: Run) -> None:
    scene = result.scene
    labels, changed = scene.given(result.threat), result.images
    with torch.no_grad():
        rise = scene.model(changed) - scene.model(scene.images)
    rise = rise - rise.gather(1, labels[:, None])
    for sign in (1, -1):
        excess = sign * rise - _gains(scene, labels, result.threat, sign) * (1 + 1e-4) - 1e-5
        if bool((excess > 0).any()):
            raise Broken(
                f"{describe(result.threat)}: on a linear model a margin changes by {float(excess.max()):.3g} more than "
                "anything in the ball can"
            )


def _gains(scene: Scene, labels: Tensor, threat: Threat, sign: int = 1) -> Tensor:
    """How far every score can rise (or fall) against that of the label within the ball, shape ``(N, K)``."""
    assert threat.eps is not None
    slopes = sign * _linear(scene).slopes(labels)
    images = scene.images.flatten(1)[:, None].expand_as(slopes)
    gains = largest_gain(slopes.flatten(0, 1), images.flatten(0, 1), threat.norm, threat.eps)
    return gains.reshape(slopes.shape[:2])


def _distance(result: Run) -> str:
    """Nothing that changes a decision is smaller than truth allows; how much larger it is."""
    scene, threat, changed = result.scene, result.threat, result.images
    labels = scene.given(threat)
    with torch.no_grad():
        decisions, scores = scene.model.predict(changed), scene.model(scene.images)
    toward = -1 if threat.targeted else 1
    slopes = toward * _linear(scene).slopes(labels)
    gaps = toward * (scores.gather(1, labels[:, None]) - scores)
    images = scene.images.flatten(1)[:, None].expand_as(slopes)
    each = smallest_change(slopes.flatten(0, 1), gaps.flatten(), images.flatten(0, 1), threat.norm).reshape(gaps.shape)
    own = nn.functional.one_hot(labels, scores.shape[1]).bool()
    least = each.masked_fill(own, 0).amax(dim=1) if threat.targeted else each.masked_fill(own, torch.inf).amin(dim=1)
    sizes = change_norms(scene.images, changed)[threat.norm]
    reached = (decisions == labels) if threat.targeted else (decisions != labels)
    short = reached & (sizes < least * (1 - 1e-5) - 1e-6)
    if bool(short.any()):
        raise Broken(f"{describe(threat)}: {int(short.sum())} samples are said to need less than is possible")
    counted = reached & (least > 0)
    ratio = f"{float((sizes / least)[counted].mean()):.3g}" if bool(counted.any()) else "none"
    return f"{describe(threat)} {ratio} where it succeeds ({float(reached.double().mean()):.0%})"


def _linear(scene: Scene) -> Linear:
    assert isinstance(scene.model, Linear)
    return scene.model


def _passes(bench: Bench) -> str:
    most = (0.0, 0.0)
    for result in bench.done():
        attack = bench.attack.bind([result.scene.peer])
        spent, said = (result.forwards, result.backwards), attack.passes(result.scene.model.num_classes)
        if spent[0] > said[0] or spent[1] > said[1]:
            raise Broken(
                f"{describe(result.threat)}: {spent[0]:g} forward and {spent[1]:g} backward passes are spent on a "
                f"sample, {said[0]} and {said[1]} announced"
            )
        most = max(most, spent)
    return f"at the most {most[0]:g} forward and {most[1]:g} backward"


def _use_of_gradients(bench: Bench) -> str:
    used = any(result.backwards for result in bench.done())
    if used and not bench.attack.white_box:
        raise Broken("gradients are asked for, and white_box is False")
    if bench.attack.white_box and not used:
        raise Broken("white_box is True, and no gradient was ever asked for")
    return "uses gradients" if used else "uses none"


RULES: tuple[Rule[Bench], ...] = (
    Rule("any number of classes", _any_number_of_classes),
    Rule("targets are approached", _targets),
    Rule("eps = 0 changes nothing", _eps_zero),
    Rule("batch and order change nothing", _batch_and_order),
    Rule("a seed gives the same again", _same_seed),
    Rule("gradients may be off outside", _no_gradient_outside),
    Rule("no gradient is left behind", _nothing_left),
    Rule("an empty batch is possible", _empty_batch),
    Rule("a constant model is possible", _constant_model),
    Rule("no better than possible", _within_the_possible),
    Rule("passes as announced", _passes),
    Rule("gradients as announced", _use_of_gradients),
)


def check_attack(attack: Attack, norms: Sequence[Norm]) -> list[Finding]:
    """Every rule for an attack that is registered for some norms."""
    bench = Bench(attack, norms)
    return [*referee(bench), *judge(RULES, bench)]
