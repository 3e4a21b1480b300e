from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.report.names import displayed, legend


def drawn(name: str) -> str:
    """A name that was drawn; a missing glyph is a warning, and so an error here."""
    figure = Figure()
    text = figure.text(0.5, 0.5, name)
    FigureCanvasAgg(figure).draw()
    return str(text.get_text())


def test_dollars_are_text() -> None:
    for name in ("$", "$$", "$x$", "$\\frac$", "a$b$c", "\\$"):
        [shown] = displayed([name])
        assert shown.replace(r"\$", "$") == name
        drawn(shown)


def test_a_name_that_the_font_lacks_is_its_number() -> None:
    names = ["cat", "\u732b", "caf\u00e9", "\u72ac \U0001f436"]
    assert displayed(names) == ["cat", "#2", "caf\u00e9", "#4"]
    assert "number of the class" in legend(names)
    assert legend(["cat"]) == ""
    for name in displayed(names):
        drawn(name)


def test_a_long_name_is_shortened() -> None:
    assert displayed(["x" * 31]) == ["x" * 27 + "..."]
