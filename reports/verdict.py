"""The verdict of a report: what came out, in a plain sentence."""

from collections.abc import Sequence

from ..distill.training.diagnosis import chance_bound
from .figures import EVERYTHING, CacheFigures, RunFigures, Subject, TowerFigures


def percent(share: float) -> str:
    """A share with the decimals that tell it from zero.

    >>> percent(0.1234), percent(0.001), percent(1.0), percent(0.0)
    ('12.3 %', '0.10 %', '100.0 %', '0.0 %')
    """
    return f"{100 * share:.2f} %" if 0 < share < 0.01 else f"{100 * share:.1f} %"


def points_of(difference: float) -> str:
    """A difference of shares in points, with its sign.

    >>> points_of(-0.002), points_of(0.05)
    ('−0.2', '5.0')
    """
    return f"{100 * difference:.1f}".replace("-", "−")


def run_verdict(run: RunFigures) -> str:
    """What a run came to, by its own lines."""
    if run.diverged_at is not None:
        return f"This run diverged at step {run.diverged_at:,}: its loss or gradient is no longer a finite number."
    if not run.step and not run.has_validation:
        return "This run has no step yet."
    where = f"step {run.step:,}"
    if run.num_steps and not run.is_finished:
        where += f" of {run.num_steps:,}"
    if run.has_validation:
        best = run.at("r_at_1", run.best_step)
        guess = f"; chance is {percent(run.chance_recall)}" if run.chance_recall is not None else ""
        state = "This run" if run.is_finished else f"At {where} this run"
        learned = "finds" if not _is_at_chance(run) else "is no better than chance: it finds"
        at = f" (best validation, after step {run.best_step:,})" if run.best_step != run.step else ""
        return f"{state} {learned} the image of a held-out caption first for {percent(best or 0.0)} of them{at}{guess}."
    loss = run.curves["loss"].last
    told = "" if loss is None else f" its loss is {loss:.2f} at {where}"
    if told and run.chance_loss is not None:
        told += f", where chance is {run.chance_loss:.2f}"
    return f"This run has no validation (--val){':' if told else ''}{told}."


def _is_at_chance(run: RunFigures) -> bool:
    return any(finding.kind in ("recall_at_chance", "collapsed") for finding in run.findings)


def subject_verdict(name: str, run: RunFigures | None, caches: Sequence[CacheFigures]) -> str:
    """What a subject came to: on the caches, else by the lines of its run.

    Args:
        name: of the subject.
        run: its figures.
        caches: that were measured.
    """
    if run is not None and run.diverged_at is not None:
        return run_verdict(run)
    for cache in caches:
        for tower in cache.towers:
            if tower.name == name and not tower.is_reference:
                return _measured(cache, tower, f"This {'run' if run else 'CLIP'}")
    return run_verdict(run) if run else "This CLIP was measured on no cache: pass --cache."


def _measured(cache: CacheFigures, tower: TowerFigures, subject: str) -> str:
    reference = next((other.name for other in cache.towers if other.is_reference), None)
    if reference is None and tower is not cache.towers[0]:
        reference = cache.towers[0].name
    compared = ""
    if reference is not None and tower.differences:
        first = tower.differences[0]
        points = f"{abs(100 * first.difference):.1f} points"
        interval = sorted(abs(100 * end) for end in (first.low, first.high))
        if first.is_significant:
            which = "better" if first.difference > 0 else "worse"
            compared = (
                f", and is {which} than {reference} by {points} (95 % interval {interval[0]:.1f} to {interval[1]:.1f})"
            )
        else:
            compared = f", and cannot be told apart from {reference} (difference {points_of(first.difference)} points)"
    if tower.zero_shot:
        score = tower.zero_shot
        at_chance = score.top1 <= chance_bound(score.chance, score.num_images)
        verb = "is no better than chance: it recognises" if at_chance else "recognises"
        return (
            f"{subject} {verb} {percent(score.top1)} of {score.num_images:,} images among "
            f"{len(score.classes):,} classes (chance {percent(score.chance)}){compared}."
        )
    ranks = tower.retrieval[EVERYTHING].text_to_image
    chance = cache.chance["r_at_1"]
    at_chance = ranks.r_at_1 <= chance_bound(chance, cache.num_images)
    return (
        f"{subject} {'is no better than chance: it ' if at_chance else ''}finds the right image first for "
        f"{percent(ranks.r_at_1)} of {ranks.num_queries:,} captions among {ranks.num_candidates:,} images "
        f"(chance {percent(chance)}){compared}."
    )


def report_verdict(subjects: Sequence[Subject], caches: Sequence[CacheFigures]) -> str:
    """What the whole report says: of a single subject its verdict, of several which is best."""
    if len(subjects) == 1:
        return subjects[0].verdict
    for cache in caches:
        towers = [tower for tower in cache.towers if not tower.is_reference]
        if len(towers) < 2:
            continue
        best = max(towers, key=main_figure)
        what = "recognises the most images" if best.zero_shot else "finds the most images"
        told = f"{best.name} {what} of {cache.name}: {percent(main_figure(best))}"
        first = towers[0]
        if best is first:
            others = [tower.name for tower in towers[1:] if main_figure(tower) == main_figure(best)]
            if others:
                names = " and ".join([best.name, *others])
                return f"{names} do equally well on {cache.name}: {percent(main_figure(best))}."
            second = max(towers[1:], key=main_figure)
            told += f", ahead of {second.name} with {percent(main_figure(second))}"
            pair, sign = second, -1
        else:
            told += f", {first.name} {percent(main_figure(first))}"
            pair, sign = best, 1
        if not any(tower.is_reference for tower in cache.towers) and pair.differences:
            told += (
                "; the difference is significant"
                if pair.differences[0].is_significant and sign * pair.differences[0].difference > 0
                else "; the two cannot be told apart"
            )
        return told + "."
    scored = [s for s in subjects if s.run and s.run.has_validation and s.run.diverged_at is None]
    if scored:
        best_run = max(scored, key=lambda s: _best_recall(s))
        return (
            f"{best_run.name} has the best validation of {len(subjects)}: "
            f"it finds the image first for {percent(_best_recall(best_run))} of the captions."
        )
    return f"None of these {len(subjects)} can be judged yet: {subjects[0].name}: {subjects[0].verdict}"


def main_figure(tower: TowerFigures) -> float:
    """R@1, text to image; of classes the accuracy."""
    return tower.zero_shot.top1 if tower.zero_shot else tower.retrieval[EVERYTHING].text_to_image.r_at_1


def _best_recall(subject: Subject) -> float:
    assert subject.run is not None
    return subject.run.at("r_at_1", subject.run.best_step) or 0.0
