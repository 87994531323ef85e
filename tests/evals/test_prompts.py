"""Files of class names and templates, and what is made of bad ones."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from clipglot.evals.errors import EvalError
from clipglot.evals.prompts import read_class_names, read_templates
from clipglot.inference.prompts import TEMPLATES, class_embeddings, fill


def encode(texts: Sequence[str]) -> np.ndarray:
    """Unit embeddings that differ by text."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=6) for text in texts]
    return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


def test_a_class_is_the_mean_over_its_names_and_the_templates() -> None:
    names, templates = [["cat", "kitten"], ["dog"]], ["a {}", "{} here", "the {c}."]
    expected = []
    for synonyms in names:
        prompts = [t.replace("{}", n).replace("{c}", n) for n in synonyms for t in templates]
        mean = encode(prompts).astype(float).mean(0)
        expected.append(mean / np.linalg.norm(mean))
    assert class_embeddings(encode, names, templates) == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.parametrize("language", ["en", "ru", "zh", "ko"])
def test_built_in_templates_have_a_place_and_differ(language: str) -> None:
    templates = read_templates([language])
    assert len(set(templates)) == len(templates) >= 8
    assert all(fill(template, "X").count("X") == 1 for template in templates)
    assert templates == TEMPLATES[language]


def test_templates_come_from_languages_files_and_the_command_line_in_order(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("фото {}\r\nрисунок {}\r\n", encoding="utf-8-sig")
    assert read_templates([str(tmp_path / "t.txt"), "эскиз {}"]) == ("фото {}", "рисунок {}", "эскиз {}")
    assert read_templates([]) == ("{}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a {}\n\nthe {}\n", r"t\.txt:2: an empty template: delete the line"),
        ("a photo\n", r"t\.txt:1: 'a photo' has no {} in the place of the class name"),
        ("", r"t\.txt has no template: write one a line"),
    ],
)
def test_a_bad_file_of_templates_is_named_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(EvalError, match=message):
        read_templates([str(tmp_path / "t.txt")])


@pytest.mark.parametrize("given", ["", "fr", "absent.txt"])
def test_neither_a_language_nor_a_file_nor_a_template(given: str) -> None:
    with pytest.raises(EvalError, match=r"no such file, and no language with built-in templates \(en, ru, zh, ko\)"):
        read_templates([given])


@pytest.mark.parametrize(
    ("name", "content", "names", "is_ordered"),
    [
        ("c.txt", "кошка|кот\nсобака\n", {"0": ("кошка", "кот"), "1": ("собака",)}, True),
        ("c.txt", "cat\tкошка | кот\ndog\tсобака", {"cat": ("кошка", "кот"), "dog": ("собака",)}, False),
        ("c.json", '["cat", ["dog", "hound"]]', {"0": ("cat",), "1": ("dog", "hound")}, True),
        ("c.json", '{"n01": "cat", "n02": ["dog", "hound"]}', {"n01": ("cat",), "n02": ("dog", "hound")}, False),
    ],
)
def test_forms_of_a_file_of_classes(
    name: str, content: str, names: dict[str, tuple[str, ...]], is_ordered: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = read_class_names(tmp_path / name)
    assert (found.names, found.is_ordered) == (names, is_ordered)


def test_babel_imagenet_names_classes_of_a_language_by_their_place(tmp_path: Path) -> None:
    babel = {"RU": [[0, 2], ["линь", "белая акула"]], "KO": [[1], ["금붕어"]]}
    (tmp_path / "babel.json").write_text(json.dumps(babel))
    found = read_class_names(tmp_path / "babel.json", "RU")
    assert found.names == {"0": ("линь",), "2": ("белая акула",)}
    with pytest.raises(EvalError, match="pass --classes-language, one of KO, RU"):
        read_class_names(tmp_path / "babel.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", "cat\n\ndog\n", r"c\.txt:2 is empty: delete the line"),
        ("c.txt", "cat|\ndog\n", r"class '0' has an empty name"),
        ("c.txt", "crane\ncat\ncrane\n", r"'crane' is a name of two classes, '0' and '2': make them differ"),
        ("c.txt", "a\tcat\ndog\nb\tcow\n", r"c\.txt:2: some lines have a label and a tab"),
        ("c.txt", "a\tcat\na\tdog\n", r"c\.txt:2: label 'a' stands in an earlier line"),
        ("c.txt", "", r"c\.txt has no class"),
        ("c.json", "[1, 2]", r"expected a list of names, or an object"),
        ("c.json", '{"a": []}', r"expected a list of names, or an object"),
        ("c.json", "{", r"c\.json is no JSON"),
        ("c.json", "[" * 100_000, r"c\.json is no JSON \(nested too deeply\)"),
        ("c.json", f"[{'1' * 5000}]", r"c\.json is no JSON \(Exceeds the limit"),
        ("c.json", '["\\ud800"]', r"c\.json is no JSON \('utf-8' codec can't encode"),
        ("c.json", '{"RU": [[-1], ["a"]]}', r"expected a list of names, or an object"),
        ("c.json", '{"RU": [[1, 1], ["a", "b"]]}', r"c\.json: RU has an index twice"),
    ],
)
def test_a_bad_file_of_classes_is_one_clear_error(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(EvalError, match=message):
        read_class_names(tmp_path / name, "RU")
