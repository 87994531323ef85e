"""Captions of the demo, word for word, as a native speaker would write them."""

import random

import pytest
from clipglot.demo.captions import caption, class_prompt
from clipglot.demo.grammars import LANGUAGES, Language
from clipglot.demo.scenes import COLOURS, SHAPES, Group, Scene, held_out_scenes, training_scenes

LARGE_RED_CIRCLE = Group(colour="red", shape="circle", size="large")
SMALL_BLUE_STAR = Group(colour="blue", shape="star", size="small")


def scene(*groups: Group, layout: str, background: str = "black") -> Scene:
    return Scene(groups=groups, layout=layout, background=background, jitter=0)  # type: ignore[arg-type]


def group(colour: str, shape: str, count: int) -> Group:
    return Group(colour=colour, shape=shape, count=count)  # type: ignore[arg-type]


def wordings(described: Scene, language: Language, *, complete: bool = False) -> set[str]:
    """All captions of a scene that occur in 800 draws."""
    return {caption(described, language, random.Random(seed), complete=complete) for seed in range(800)}


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (
            "en",
            {
                "a blue star",
                "there is a small blue star",
                "a small blue star on a black background",
                "on the left there is a small blue star",
                "on a black background, a small blue star on the left",
            },
        ),
        (
            "ru",
            {
                "синяя звезда",
                "нарисована маленькая синяя звезда",
                "маленькая синяя звезда на чёрном фоне",
                "слева находится маленькая синяя звезда",
                "на чёрном фоне слева маленькая синяя звезда",
            },
        ),
        (
            "zh",
            {
                "一颗蓝色的星星",
                "蓝色小星星",
                "黑色背景上有一颗蓝色的小星星",
                "左边有一颗蓝色的小星星",
                "黑色背景上,蓝色小星星在左边",
                "左边有一颗蓝色的小星星,背景是黑色的",
            },
        ),
        (
            "ko",
            {
                "파란색 별",
                "작은 파란색 별이 있다",
                "검은색 배경에 작은 파란색 별",
                "작은 파란색 별은 왼쪽에 있다",
                "배경은 검은색이고 왼쪽에 작은 파란색 별이 있다",
            },
        ),
    ],
)
def test_captions_of_one_object(language: Language, expected: set[str]) -> None:
    assert expected <= wordings(scene(SMALL_BLUE_STAR, layout="left"), language)


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (
            "en",
            {
                "a large red circle to the left of a small blue star",
                "to the right of a large red circle there is a small blue star",
                "a large red circle on the left and a small blue star on the right",
                "a red circle and a blue star",
            },
        ),
        (
            "ru",
            {
                "большой красный круг слева от маленькой синей звезды",
                "справа от большого красного круга находится маленькая синяя звезда",
                "слева большой красный круг, а справа маленькая синяя звезда",
                "красный круг и синяя звезда",
            },
        ),
        (
            "zh",
            {
                "红色大圆形在蓝色小星星左边",
                "红色大圆形右边有一颗蓝色的小星星",
                "左边有一个红色的大圆形,右边有一颗蓝色的小星星",
                "一个红色的圆形和一颗蓝色的星星",
            },
        ),
        (
            "ko",
            {
                "큰 빨간색 원은 작은 파란색 별의 왼쪽에 있다",
                "큰 빨간색 원의 오른쪽에 작은 파란색 별이 있다",
                "왼쪽에는 큰 빨간색 원이, 오른쪽에는 작은 파란색 별이 있다",
                "빨간색 원과 파란색 별",
            },
        ),
    ],
)
def test_captions_of_two_groups(language: Language, expected: set[str]) -> None:
    assert expected <= wordings(scene(LARGE_RED_CIRCLE, SMALL_BLUE_STAR, layout="beside"), language)


@pytest.mark.parametrize(
    ("described", "language", "expected"),
    [
        (group("red", "circle", 2), "ru", {"два красных круга", "нарисованы два красных круга"}),
        (group("red", "star", 2), "ru", {"две красные звезды", "две красные звезды на чёрном фоне"}),
        (group("blue", "ring", 3), "ru", {"три синих кольца", "нарисованы три синих кольца"}),
        (group("light blue", "heart", 4), "ru", {"четыре голубых сердца"}),
        (group("yellow", "star", 5), "ru", {"пять жёлтых звёзд", "на чёрном фоне нарисовано пять жёлтых звёзд"}),
        (group("pink", "crescent", 2), "ru", {"две розовые луны"}),
        (group("orange", "crescent", 5), "ru", {"пять оранжевых лун"}),
        (group("green", "heart", 5), "ru", {"пять зелёных сердец"}),
        (group("orange", "cross", 3), "en", {"three orange crosses", "there are three orange crosses"}),
        (group("red", "circle", 2), "zh", {"两个红色的圆形", "黑色背景上的两个红色的圆形"}),
        (group("purple", "crescent", 3), "zh", {"三弯紫色的月牙"}),
        (group("pink", "ring", 3), "ko", {"분홍색 고리 세 개", "분홍색 고리 세 개가 있다"}),
        (group("green", "cross", 5), "ko", {"검은색 배경에 초록색 십자 모양 다섯 개"}),
    ],
)
def test_captions_of_several_equal_objects(described: Group, language: Language, expected: set[str]) -> None:
    assert expected <= wordings(scene(described, layout="scattered"), language)


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", {"two blue stars above a large red circle", "below two blue stars there is a large red circle"}),
        (
            "ru",
            {
                "две синие звезды находятся над большим красным кругом",
                "большой красный круг под двумя синими звёздами",
                "над большим красным кругом находятся две синие звезды",
            },
        ),
        ("zh", {"红色大圆形上方有两颗蓝色的星星", "红色大圆形在两颗蓝色星星下方"}),
        ("ko", {"큰 빨간색 원의 위쪽에 파란색 별 두 개가 있다", "큰 빨간색 원은 파란색 별 두 개의 아래쪽에 있다"}),
    ],
)
def test_relation_of_a_counted_group_to_a_single_object(language: Language, expected: set[str]) -> None:
    described = scene(group("blue", "star", 2), LARGE_RED_CIRCLE, layout="stacked")
    assert expected <= wordings(described, language)


def test_russian_genitive_of_numerals_and_of_neuters() -> None:
    small_heart = Group(colour="pink", shape="heart", size="small")
    described = scene(group("blue", "star", 3), small_heart, layout="beside")
    assert {
        "маленькое розовое сердце справа от трёх синих звёзд",
        "слева от маленького розового сердца находятся три синие звезды",
    } <= wordings(described, "ru")


def test_russian_instrumental_of_feminines() -> None:
    large_moon = Group(colour="blue", shape="crescent", size="large")
    described = scene(LARGE_RED_CIRCLE, large_moon, layout="stacked")
    assert {
        "большой красный круг над большой синей луной",
        "под большим красным кругом находится большая синяя луна",
    } <= wordings(described, "ru")


@pytest.mark.parametrize(
    ("shape", "subject"),
    [("circle", "원이"), ("heart", "하트가"), ("ring", "고리가"), ("crescent", "초승달이"), ("cross", "십자 모양이")],
)
def test_korean_subject_particle_follows_the_final(shape: str, subject: str) -> None:
    lone = Group(colour="red", shape=shape, size="large")  # type: ignore[arg-type]
    assert f"빨간색 {subject} 있다" in wordings(scene(lone, layout="centre"), "ko")


def test_korean_conjunction_and_topic_after_a_vowel() -> None:
    heart = Group(colour="red", shape="heart", size="small")
    described = wordings(scene(heart, SMALL_BLUE_STAR, layout="beside"), "ko")
    assert {"빨간색 하트와 파란색 별", "작은 빨간색 하트는 작은 파란색 별의 왼쪽에 있다"} <= described


def test_class_prompts() -> None:
    prompts = {
        "en": ("an orange square", "a light blue heart"),
        "ru": ("оранжевый квадрат", "голубое сердце"),
        "zh": ("一个橙色的正方形", "一颗浅蓝色的爱心"),
        "ko": ("주황색 정사각형", "하늘색 하트"),
    }
    for language in LANGUAGES:
        told = class_prompt("orange", "square", language), class_prompt("light blue", "heart", language)
        assert told == prompts[language]
        assert len({class_prompt(c, s, language) for c in COLOURS for s in SHAPES}) == 64


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_filled_in_and_deterministic(language: Language) -> None:
    for seed, described in enumerate(training_scenes(500, seed=3)):
        told = caption(described, language, random.Random(seed))
        assert told == caption(described, language, random.Random(seed))
        assert told == " ".join(told.split())
        assert told
        assert not set(told) & set("{}")
        assert language == "en" or not any("a" <= letter <= "z" for letter in told)


@pytest.mark.parametrize("language", ["en", "ru", "ko"])
def test_training_captions_contain_every_word_of_the_prompts(language: Language) -> None:
    # A form that only held-out pairs take, as красная would if звезда were the one feminine noun, cannot be learned.
    taught = {
        word
        for seed, described in enumerate(training_scenes(4_000, seed=0))
        for word in caption(described, language, random.Random(seed)).split()
    }
    asked = {word for c in COLOURS for s in SHAPES for word in class_prompt(c, s, language).split()}
    assert asked <= taught


@pytest.mark.parametrize("language", LANGUAGES)
def test_complete_captions_distinguish_scenes(language: Language) -> None:
    scenes = held_out_scenes(1000, seed=5)
    told = {caption(each, language, random.Random(i), complete=True) for i, each in enumerate(scenes)}
    assert len(told) == len(scenes)
