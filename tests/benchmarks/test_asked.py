"""What a person names after a benchmark's name is understood, or refused before it runs."""

import sys

import pytest

ABOUT = "Time things.\n\n    python benchmark.py [NAME ...]"


@pytest.fixture
def given(script, monkeypatch):
    """Calls `asked` as a script does that was started with these words."""

    def call(*words, **options):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
        return script("asked").asked(ABOUT, **options)

    return call


def test_words_come_as_they_were_given(given):
    assert given() == []
    assert given("7x7", "1x11") == ["7x7", "1x11"]
    assert given("w", "i", "b", "a", needed=("WEIGHTS", "IMAGES")) == ["w", "i", "b", "a"]
    assert given("b", known=("a", "b")) == ["b"]


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (["--fast"], {}, "--fast"),
        (["w"], {"needed": ("WEIGHTS", "IMAGES")}, "IMAGES"),
        (["resnet5"], {"known": ("resnet50", "levit_192")}, "'resnet5': did you mean resnet50?"),
        (["x"], {"known": ("resnet50", "levit")}, "'x': did you mean levit, resnet50?"),
        (["x"], {"known": ()}, "nothing here is called 'x'\n"),
    ],
)
def test_what_is_not_understood_ends_it_with_a_sentence(given, capsys, words, options, said):
    with pytest.raises(SystemExit) as ended:
        given(*words, **options)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_help_is_the_docstring(given, capsys):
    with pytest.raises(SystemExit) as ended:
        given("--help")
    assert ended.value.code == 0
    assert ABOUT in capsys.readouterr().out


def test_rows_are_picked_by_a_part_of_their_names(script):
    picked = script("asked").picked
    lines = ["resnet, out of the box", "levit, out of the box", "levit, kept"]
    assert picked(lines, []) == lines
    assert picked(lines, ["levit"]) == lines[1:]
    assert picked(lines, ["kept", "resnet"]) == [lines[0], lines[2]]
    with pytest.raises(SystemExit, match=r"no row has vit9 or x7 in its name; there are\n  resnet"):
        picked(lines, ["vit9", "x7"])
