"""What every attack is held to: the referee's rules, the contract of ``Attack``, and what closed forms allow."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from robbench.attacks._losses import margin
from robbench.conformance.rules import Broken, NotApplicable, Rule, RuleResult, Several, crash, demand
from robbench.conformance.scenarios import (
    CLASSES,
    COUNT,
    Bench,
    Constant,
    Linear,
    Run,
    Scenario,
    describe,
    largest_gain,
    linear,
    run,
    scaled,
    smallest_change,
)
from robbench.core.sample_rng import Streams
from robbench.core.threat_model import Threat
from robbench.evaluation.referee import change_norms

REFEREE = "the referee's rules"
SCALES = (1e-6, 1e-4, 1e2, 1e4, 1e6)
LONGER = 1.02
"""By how much a smallest change may differ from scale to scale, as rounding makes searches differ."""


def _referee(bench: Bench) -> str:
    """The referee's rules, over every norm, size and model: all that are broken at once."""
    count = 0
    broken: dict[str, RuleResult] = {}
    scenarios = (bench.linear[bench.classes], bench.network[bench.classes])
    try:
        for scenario, threat in ((scenario, threat) for scenario in scenarios for threat in bench.every(bench.classes)):
            count += 1
            for breach in bench.run(scenario, threat).breaches:
                detail = f"{describe(threat)}: {str(breach).removeprefix(f'{breach.rule}: ')}"
                broken.setdefault(breach.rule, RuleResult(breach.rule, False, detail))
    except (Exception, SystemExit) as error:
        broken[REFEREE] = RuleResult(REFEREE, False, crash(error))
    if broken:
        raise Several(list(broken.values()))
    return f"{count} runs in {', '.join(bench.norms)}"


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
    scenario = bench.linear[bench.classes]
    for threat in bench.threats(bench.classes, targeted=True):
        targets = scenario.given(threat)
        nearer = _margins(scenario, bench.run(scenario, threat).images, targets) - _margins(
            scenario, scenario.images, targets
        )
        if float(nearer.mean()) < -1e-6:
            raise Broken(f"{describe(threat)}: the target's score falls, as if it were the class to leave")
    return ""


def _margins(scenario: Scenario, images: Tensor, labels: Tensor) -> Tensor:
    """Score of the label minus the best other one."""
    with torch.no_grad():
        return -margin(scenario.model(images), labels)


def _eps_zero(bench: Bench) -> str:
    for threat in bench.bounded:
        for scenario in (bench.linear[bench.classes], bench.network[bench.classes]):
            changed = bench.run(scenario, replace(threat, eps=0.0)).images
            if not torch.equal(changed, scenario.images):
                moved = float((changed - scenario.images).abs().max())
                raise Broken(f"{describe(threat)} with eps = 0: values moved by up to {moved:.3g}")
    return ""


def _batch_and_order(bench: Bench) -> str:
    if bench.attack.global_state:
        raise NotApplicable("the attack says that it draws from global state")
    scenario = bench.linear[bench.classes]
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    for threat in bench.usual:
        whole = bench.run(scenario, threat).images
        for index in (order[:1], order[1:], order):
            part = run(bench.attack, scenario.take(index), threat).images
            apart = float((part - whole[index]).abs().max())
            if apart > 1e-9:
                raise Broken(
                    f"{describe(threat)}: in another order, {len(index)} of {COUNT} samples at once, values differ by "
                    f"up to {apart:.3g}"
                )
    return f"batches of 1, {COUNT - 1} and {COUNT}"


def _same_seed(bench: Bench) -> str:
    for scenario in (bench.linear[bench.classes], bench.network[bench.classes]):
        for threat in bench.usual:
            if not torch.equal(bench.run(scenario, threat).images, run(bench.attack, scenario, threat).images):
                raise Broken(f"{describe(threat)}: the same call gives other images the second time")
    return ""


def _no_gradient_outside(bench: Bench) -> str:
    scenario = bench.linear[bench.classes]
    for threat in bench.usual:
        with torch.no_grad():
            images = run(bench.attack, scenario, threat).images
        if not torch.allclose(images, bench.run(scenario, threat).images, rtol=0, atol=1e-9):
            raise Broken(f"{describe(threat)}: the result is another one where gradients are switched off outside")
    return ""


def _nothing_left(bench: Bench) -> str:
    scenario = bench.linear[bench.classes]
    model = linear(bench.classes).requires_grad_(True)
    for threat in bench.usual:
        images = scenario.images.clone()
        streams = Streams.of(scenario.ids, 0, "conformance")
        returned = bench.attack.bind([scenario.peer]).perturb(
            model, images, scenario.given(threat).clone(), threat, streams
        )
        clear = all(weight.grad is None for weight in model.parameters())
        demand(not returned.requires_grad, f"{describe(threat)}: the returned images still require a gradient")
        demand(not images.requires_grad, f"{describe(threat)}: the images given to it require a gradient now")
        demand(clear, f"{describe(threat)}: a gradient is left in a weight that is trained")
    return ""


def _empty_batch(bench: Bench) -> str:
    nothing = bench.linear[bench.classes].take(torch.arange(0))
    for threat in bench.usual:
        _refuse_breaches(bench, bench.run(nothing, threat))
    return ""


def _constant_model(bench: Bench) -> str:
    scenario, bias = bench.linear[bench.classes], torch.eye(bench.classes, dtype=torch.float64)[0]
    still = replace(scenario, model=Constant(torch.zeros(bench.classes, 1), bias).eval(), labels=scenario.labels * 0)
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
            raise Broken(f"{result.scenario.model.num_classes} classes, {describe(result.threat)}: {breach}")


def _within_the_possible(bench: Bench) -> str:
    scenario = bench.linear[bench.classes]
    threats = [threat for threat in bench.every(bench.classes) if threat.norm != "none"]
    if not threats:
        raise NotApplicable("natural perturbations have no norm")
    gains = [_best_gain(bench, threat) for threat in threats if threat.eps is not None]
    changes = [_distance(bench.run(scenario, threat)) for threat in threats if threat.eps is None]
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
    scenario = result.scenario
    labels, changed = scenario.given(result.threat), result.images
    with torch.no_grad():
        rise = scenario.model(changed) - scenario.model(scenario.images)
    rise = rise - rise.gather(1, labels[:, None])
    for sign in (1, -1):
        excess = sign * rise - _gains(scenario, labels, result.threat, sign) * (1 + 1e-4) - 1e-5
        if bool((excess > 0).any()):
            raise Broken(
                f"{describe(result.threat)}: on a linear model a margin changes by {float(excess.max()):.3g} more than "
                "anything in the ball can"
            )


def _gains(scenario: Scenario, labels: Tensor, threat: Threat, sign: int = 1) -> Tensor:
    """How far every score can rise (or fall) against that of the label within the ball, shape ``(N, K)``."""
    assert threat.eps is not None
    slopes = sign * _linear(scenario).slopes(labels)
    images = scenario.images.flatten(1)[:, None].expand_as(slopes)
    gains = largest_gain(slopes.flatten(0, 1), images.flatten(0, 1), threat.norm, threat.eps)
    return gains.reshape(slopes.shape[:2])


def _distance(result: Run) -> str:
    """Nothing that changes a prediction is smaller than truth allows; how much larger it is."""
    scenario, threat, changed = result.scenario, result.threat, result.images
    labels = scenario.given(threat)
    with torch.no_grad():
        predicted, scores = scenario.model.predict(changed), scenario.model(scenario.images)
    toward = -1 if threat.targeted else 1
    slopes = toward * _linear(scenario).slopes(labels)
    gaps = toward * (scores.gather(1, labels[:, None]) - scores)
    images = scenario.images.flatten(1)[:, None].expand_as(slopes)
    each = smallest_change(slopes.flatten(0, 1), gaps.flatten(), images.flatten(0, 1), threat.norm).reshape(gaps.shape)
    own = nn.functional.one_hot(labels, scores.shape[1]).bool()
    least = each.masked_fill(own, 0).amax(dim=1) if threat.targeted else each.masked_fill(own, torch.inf).amin(dim=1)
    sizes = change_norms(scenario.images, changed)[threat.norm]
    reached = (predicted == labels) if threat.targeted else (predicted != labels)
    short = reached & (sizes < least * (1 - 1e-5) - 1e-6)
    if bool(short.any()):
        raise Broken(f"{describe(threat)}: {int(short.sum())} samples are said to need less than is possible")
    counted = reached & (least > 0)
    ratio = f"{float((sizes / least)[counted].mean()):.3g}" if bool(counted.any()) else "none"
    return f"{describe(threat)} {ratio} where it succeeds ({float(reached.double().mean()):.0%})"


def _linear(scenario: Scenario) -> Linear:
    assert isinstance(scenario.model, Linear)
    return scenario.model


def _scale_of_scores(bench: Bench) -> str:
    """What fools linear scores does so at every scale, by changes of the same size: scaling moves no boundary."""
    if not bench.attack.white_box or not {"margin", "dlr"}.intersection(bench.attack.losses):
        raise NotApplicable("the attack follows no gradient of margins; that of cross-entropy depends on the scale")
    usual = scaled(bench.classes, 1.0)
    for threat in bench.usual:
        labels, truth = usual.given(threat), bench.run(usual, threat).images
        with torch.no_grad():
            # Rounding may turn what lies on the boundary.
            clear = _margins(usual, truth, labels).abs() > 1e-3 * _margins(usual, usual.images, labels).abs()
        sizes = change_norms(usual.images, truth)[threat.norm]
        for scale in SCALES:
            scenario = scaled(bench.classes, scale)
            found = bench.run(scenario, threat).images
            lost = _fooled(usual, truth, threat) & ~_fooled(scenario, found, threat)
            if threat.eps is not None:
                lost &= clear
            where = f"{describe(threat)}: with scores × {scale:g}"
            demand(
                not bool(lost.any()), f"{where}, {int(lost.sum())} of {COUNT} samples are not fooled that usually are"
            )
            longer = (change_norms(scenario.images, found)[threat.norm] > LONGER * sizes + 1e-6) & ~lost
            if threat.eps is None and bool(longer.any()):
                raise Broken(f"{where}, {int(longer.sum())} of {COUNT} changes are longer than they usually are")
    return f"scores × {SCALES[0]:g} to {SCALES[-1]:g} in float32"


def _fooled(scenario: Scenario, images: Tensor, threat: Threat) -> Tensor:
    labels = scenario.given(threat)
    with torch.no_grad():
        predicted = scenario.model.predict(images)
    return (predicted == labels) if threat.targeted else (predicted != labels)


def _passes(bench: Bench) -> str:
    most = (0.0, 0.0)
    for result in bench.done():
        attack = bench.attack.bind([result.scenario.peer])
        spent, said = (result.forwards, result.backwards), attack.passes(result.scenario.model.num_classes)
        if spent[0] > said[0] or spent[1] > said[1]:
            raise Broken(
                f"{describe(result.threat)}: {spent[0]:g} forward and {spent[1]:g} backward passes are spent on a "
                f"sample, {said[0]} and {said[1]} announced"
            )
        most = max(most, spent)
    return f"at the most {most[0]:g} forward and {most[1]:g} backward"


def _use_of_gradients(bench: Bench) -> str:
    used = any(result.backwards for result in bench.done())
    demand(bench.attack.white_box or not used, "gradients are asked for, and white_box is False")
    demand(used or not bench.attack.white_box, "white_box is True, and no gradient was ever asked for")
    return "uses gradients" if used else "uses none"


ATTACKS: tuple[Rule[Bench], ...] = (
    Rule(REFEREE, _referee),
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
    Rule("the scale of scores changes nothing", _scale_of_scores),
    Rule("passes as announced", _passes),
    Rule("gradients as announced", _use_of_gradients),
)
