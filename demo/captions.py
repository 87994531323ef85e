"""Captions of the demo's scenes in English, Russian, Chinese and Korean.

The content of a caption, details and their order, is chosen here, in the same way for all languages. `grammars` has
the words.
"""

import random

from .grammars import GRAMMARS, LANGUAGES, Language
from .scenes import Colour, Group, Scene, Shape

__all__ = ["LANGUAGES", "Language", "caption", "class_prompt"]
# Sides of two groups, in their order within the scene.
_SIDES = {"beside": ("left", "right"), "stacked": ("top", "bottom")}


def caption(scene: Scene, language: Language, rng: random.Random, *, complete: bool = False) -> str:
    """Describe a scene in one sentence or noun phrase.

    Args:
        scene: what to describe.
        language: one of `LANGUAGES`.
        rng: chooses the word order and the details to leave out.
        complete: mention all details, so that scenes with different content get different captions.

    >>> from clipglot.demo.scenes import Group, Scene
    >>> star = Group(colour="blue", shape="star", size="small")
    >>> scene = Scene(groups=(star,), layout="left", background="black", jitter=0)
    >>> caption(scene, "ru", random.Random(0), complete=True)
    'на чёрном фоне слева маленькая синяя звезда'
    """
    grammar = GRAMMARS[language]
    mentions_size, mentions_place, mentions_background = (complete or rng.random() < p for p in (0.4, 0.5, 0.3))
    phrases = [grammar.inflect(group, mentions_size) for group in scene.groups]
    places = _SIDES.get(scene.layout, (scene.layout,))
    if len(phrases) == 1:
        is_clause = mentions_place and scene.layout != "scattered"
        templates = grammar.placed if is_clause else grammar.alone
    else:
        is_clause = mentions_place
        templates = rng.choice((grammar.related, grammar.related, grammar.apart)) if is_clause else grammar.together
        if templates is not grammar.apart and rng.random() < 0.5:
            phrases, places = phrases[::-1], places[::-1]
    template = rng.choice(templates)
    if mentions_background:
        backdrop = rng.choice(grammar.clause_backdrops if is_clause else grammar.noun_backdrops)
        template = backdrop.replace("{}", template)
    return template.format(
        a=phrases[0],
        b=phrases[-1],
        place=grammar.place.get(places[0]),
        other_place=grammar.place.get(places[-1]),
        relation=grammar.relation.get(places[0], "").format(b=phrases[-1]),
        background=grammar.background[scene.background],
    )


def class_prompt(colour: Colour, shape: Shape, language: Language) -> str:
    """Prompt of a (colour, shape) class for zero-shot classification.

    >>> [class_prompt("blue", "star", language) for language in LANGUAGES]
    ['a blue star', 'синяя звезда', '一颗蓝色的星星', '파란색 별']
    """
    grammar = GRAMMARS[language]
    group = Group(colour=colour, shape=shape, size="large")
    return grammar.alone[0].format(a=grammar.inflect(group, False))
