"""Grammars of the demo's four languages: sentence templates and an inflection function for each.

`captions` fills the templates. `{a.text}`, `{a.gen}` etc. are forms of the first group of objects, `{b…}` those of the
second; `{place}` and `{relation}` come from the tables below the templates; `{}` in a backdrop is the rest of the
sentence. Everything is in lower case and without a full stop, as people type queries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal, get_args

from .scenes import Group

Language = Literal["en", "ru", "zh", "ko"]
LANGUAGES: tuple[Language, ...] = get_args(Language)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """Grammar of one language.

    Attributes:
        inflect: forms of a group's noun phrase, with or without its size.
        alone: templates for one group without its place.
        together: templates for two groups without their places.
        placed: templates for one object and its place.
        related: templates for the place of one group relative to the other.
        apart: templates for two groups and their places, the left or upper group first.
        noun_backdrops: add the background to `alone` and `together`.
        clause_backdrops: add the background to the other templates.
        place: names of places.
        relation: names of relative places.
        background: names of backgrounds.
    """

    inflect: Callable[[Group, bool], SimpleNamespace]
    alone: tuple[str, ...]
    together: tuple[str, ...]
    placed: tuple[str, ...]
    related: tuple[str, ...]
    apart: tuple[str, ...]
    noun_backdrops: tuple[str, ...]
    clause_backdrops: tuple[str, ...]
    place: dict[str, str]
    relation: dict[str, str]
    background: dict[str, str]


def _english(group: Group, mentions_size: bool) -> SimpleNamespace:
    many = group.count > 1
    words: list[str] = [group.size] if group.size and mentions_size else []
    words += [group.colour, _EN_PLURALS.get(group.shape, f"{group.shape}s") if many else group.shape]
    determiner = _EN_NUMERALS[group.count] if many else "an" if words[0][0] in "aeiou" else "a"
    return SimpleNamespace(
        text=" ".join([determiner, *words]),
        be="are" if many else "is",
        there="there are" if many else "there is",
    )


_EN_PLURALS = {"cross": "crosses"}
_EN_NUMERALS = {2: "two", 3: "three", 4: "four", 5: "five"}
_EN = Grammar(
    inflect=_english,
    alone=("{a.text}", "{a.there} {a.text}"),
    together=("{a.text} and {b.text}",),
    placed=("{a.text} {place}", "{place} {a.there} {a.text}"),
    related=("{a.text} {relation}", "{a.text} {a.be} {relation}", "{relation} {a.there} {a.text}"),
    apart=("{a.text} {place} and {b.text} {other_place}", "{place} {a.text}, {other_place} {b.text}"),
    noun_backdrops=("{} on a {background} background", "on a {background} background, {}"),
    clause_backdrops=("{}, on a {background} background", "on a {background} background, {}"),
    place={
        "centre": "in the centre",
        "left": "on the left",
        "right": "on the right",
        "top": "at the top",
        "bottom": "at the bottom",
    },
    relation={
        "left": "to the left of {b.text}",
        "right": "to the right of {b.text}",
        "top": "above {b.text}",
        "bottom": "below {b.text}",
    },
    background={"white": "white", "grey": "grey", "black": "black"},
)


def _russian(group: Group, mentions_size: bool) -> SimpleNamespace:
    """Forms of a noun phrase: nominative, genitive (слева от …), instrumental (над …), and its verbs."""
    gender, *noun = _RU_NOUNS[group.shape].split()
    stems = [_RU_SIZES[group.size]] if group.size and mentions_size else []
    stems.append(_RU_COLOURS[group.colour])

    def phrase(noun_form: str, ending: int, numeral: str = "") -> str:
        adjectives = [stem + endings.split()[ending] for stem, endings in stems]
        return " ".join([numeral, *adjectives, noun_form]).lstrip()

    if group.count == 1:
        by_gender = "mfn".index(gender)
        oblique = int(gender == "f")
        return SimpleNamespace(
            nom=phrase(noun[0], by_gender),
            gen=phrase(noun[1], 3 + oblique),
            ins=phrase(noun[2], 5 + oblique),
            stands="находится",
            drawn=("нарисован", "нарисована", "нарисовано")[by_gender],
        )
    nom, gen, ins = _RU_NUMERALS[group.count].split()
    few = group.count < 5
    if gender == "f" and group.count == 2:
        nom = "две"
    return SimpleNamespace(
        # After 2 to 4 the noun is in the genitive singular. Its adjective is in the genitive plural, or with a feminine
        # noun rather in the nominative plural: два красных круга, две красные звезды.
        nom=phrase(noun[1] if few else noun[3], 7 if few and gender == "f" else 8, nom),
        gen=phrase(noun[3], 8, gen),
        ins=phrase(noun[4], 9, ins),
        stands="находятся" if few else "находится",
        drawn="нарисованы" if few else "нарисовано",
    )


# Endings of adjectives: nominative m f n, genitive m/n f, instrumental m/n f; the three cases of the plural.
_RU_HARD = "ый ая ое ого ой ым ой ые ых ыми"
_RU_STRESSED = "ой ая ое ого ой ым ой ые ых ыми"
_RU_SOFT = "ий яя ее его ей им ей ие их ими"
_RU_COLOURS = {
    "red": ("красн", _RU_HARD),
    "orange": ("оранжев", _RU_HARD),
    "yellow": ("жёлт", _RU_HARD),
    "green": ("зелён", _RU_HARD),
    "light blue": ("голуб", _RU_STRESSED),
    "blue": ("син", _RU_SOFT),
    "purple": ("фиолетов", _RU_HARD),
    "pink": ("розов", _RU_HARD),
}
_RU_SIZES = {
    "small": ("маленьк", "ий ая ое ого ой им ой ие их ими"),
    "large": ("больш", "ой ая ое ого ой им ой ие их ими"),
}
# Each gender needs at least two nouns, so that every colour occurs with every gender in the training pairs.
# Gender; nominative, genitive and instrumental singular; genitive and instrumental plural.
_RU_NOUNS = {
    "circle": "m круг круга кругом кругов кругами",
    "square": "m квадрат квадрата квадратом квадратов квадратами",
    "triangle": "m треугольник треугольника треугольником треугольников треугольниками",
    "star": "f звезда звезды звездой звёзд звёздами",
    "heart": "n сердце сердца сердцем сердец сердцами",
    "cross": "m крест креста крестом крестов крестами",
    "ring": "n кольцо кольца кольцом колец кольцами",
    "crescent": "f луна луны луной лун лунами",
}
_RU_NUMERALS = {2: "два двух двумя", 3: "три трёх тремя", 4: "четыре четырёх четырьмя", 5: "пять пяти пятью"}
_RU = Grammar(
    inflect=_russian,
    alone=("{a.nom}", "{a.drawn} {a.nom}"),
    together=("{a.nom} и {b.nom}",),
    placed=("{a.nom} {place}", "{place} {a.nom}", "{place} {a.stands} {a.nom}"),
    related=("{a.nom} {relation}", "{a.nom} {a.stands} {relation}", "{relation} {a.stands} {a.nom}"),
    apart=("{place} {a.nom}, {other_place} {b.nom}", "{place} {a.nom}, а {other_place} {b.nom}"),
    noun_backdrops=("{} на {background} фоне", "на {background} фоне {}"),
    clause_backdrops=("на {background} фоне {}",),
    place={"centre": "в центре", "left": "слева", "right": "справа", "top": "вверху", "bottom": "внизу"},
    relation={
        "left": "слева от {b.gen}",
        "right": "справа от {b.gen}",
        "top": "над {b.ins}",
        "bottom": "под {b.ins}",
    },
    background={"white": "белом", "grey": "сером", "black": "чёрном"},
)


def _chinese(group: Group, mentions_size: bool) -> SimpleNamespace:
    """Forms of a noun phrase with measure word; `bare`, for the topic of a sentence, has no numeral one."""
    measure, noun = _ZH_NOUNS[group.shape]
    colour = _ZH_COLOURS[group.colour]
    # The size precedes the noun: before the colour it would be read as a shade (大红, bright red).
    thing = ({"small": "小", "large": "大"}[group.size] if group.size and mentions_size else "") + noun
    count = f"{'一两三四五'[group.count - 1]}{measure}"
    return SimpleNamespace(text=f"{count}{colour}的{thing}", bare=f"{count if group.count > 1 else ''}{colour}{thing}")


_ZH_COLOURS = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "light blue": "浅蓝色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
}
_ZH_NOUNS = {
    "circle": ("个", "圆形"),
    "square": ("个", "正方形"),
    "triangle": ("个", "三角形"),
    "star": ("颗", "星星"),
    "heart": ("颗", "爱心"),
    "cross": ("个", "十字"),
    "ring": ("个", "圆环"),
    "crescent": ("弯", "月牙"),
}
_ZH = Grammar(
    inflect=_chinese,
    alone=("{a.text}", "{a.bare}"),
    together=("{a.text}和{b.text}",),
    placed=("{place}有{a.text}", "{a.bare}在{place}"),
    related=("{relation}有{a.text}", "{a.bare}在{relation}"),
    apart=("{place}有{a.text},{other_place}有{b.text}", "{place}是{a.text},{other_place}是{b.text}"),
    noun_backdrops=("{background}背景上的{}", "{background}背景上有{}"),
    clause_backdrops=("{background}背景上,{}", "{},背景是{background}的"),
    place={"centre": "中间", "left": "左边", "right": "右边", "top": "上方", "bottom": "下方"},
    relation={
        "left": "{b.bare}左边",
        "right": "{b.bare}右边",
        "top": "{b.bare}上方",
        "bottom": "{b.bare}下方",
    },
    background={"white": "白色", "grey": "灰色", "black": "黑色"},
)


def _korean(group: Group, mentions_size: bool) -> SimpleNamespace:
    """Forms of a noun phrase with particles, chosen by its last sound: subject 이/가, topic 은/는, and 과/와."""
    size = {"small": "작은 ", "large": "큰 "}[group.size] if group.size and mentions_size else ""
    count = f" {_KO_NUMERALS[group.count]} 개" if group.count > 1 else ""
    text = f"{size}{_KO_COLOURS[group.colour]} {_KO_NOUNS[group.shape]}{count}"
    # Code points of Hangul syllables count 28 finals per vowel; the first one stands for no final consonant.
    has_final = (ord(text[-1]) - ord("가")) % 28 != 0
    subject, topic, conjunction = ("이", "은", "과") if has_final else ("가", "는", "와")
    return SimpleNamespace(text=text, subj=text + subject, topic=text + topic, conj=text + conjunction)


_KO_COLOURS = {
    "red": "빨간색",
    "orange": "주황색",
    "yellow": "노란색",
    "green": "초록색",
    "light blue": "하늘색",
    "blue": "파란색",
    "purple": "보라색",
    "pink": "분홍색",
}
_KO_NOUNS = {
    "circle": "원",
    "square": "정사각형",
    "triangle": "삼각형",
    "star": "별",
    "heart": "하트",
    "cross": "십자 모양",
    "ring": "고리",
    "crescent": "초승달",
}
_KO_NUMERALS = {2: "두", 3: "세", 4: "네", 5: "다섯"}
_KO = Grammar(
    inflect=_korean,
    alone=("{a.text}", "{a.subj} 있다"),
    together=("{a.conj} {b.text}", "{a.conj} {b.subj} 있다"),
    placed=("{place}에 {a.subj} 있다", "{a.topic} {place}에 있다"),
    related=("{relation}에 {a.subj} 있다", "{a.topic} {relation}에 있다"),
    apart=(
        "{place}에 {a.subj} 있고 {other_place}에 {b.subj} 있다",
        "{place}에는 {a.subj}, {other_place}에는 {b.subj} 있다",
    ),
    noun_backdrops=("{background} 배경에 {}",),
    clause_backdrops=("배경은 {background}이고 {}",),
    place={"centre": "가운데", "left": "왼쪽", "right": "오른쪽", "top": "위쪽", "bottom": "아래쪽"},
    relation={
        "left": "{b.text}의 왼쪽",
        "right": "{b.text}의 오른쪽",
        "top": "{b.text}의 위쪽",
        "bottom": "{b.text}의 아래쪽",
    },
    background={"white": "흰색", "grey": "회색", "black": "검은색"},
)
GRAMMARS: dict[Language, Grammar] = {"en": _EN, "ru": _RU, "zh": _ZH, "ko": _KO}
