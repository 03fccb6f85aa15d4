"""Curves as SVG."""

from xml.etree import ElementTree

from tunesmith import drawing

_SVG = "{http://www.w3.org/2000/svg}"


def _drawn(**found: tuple[list[float], list[float]]) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.curves(found, "<loss> & more"))


def _words(root: ElementTree.Element) -> set[str]:
    return {each.text or "" for each in root.iter(f"{_SVG}text")}


def test_a_picture_has_axes_a_legend_and_no_place_for_what_is_no_number() -> None:
    root = _drawn(a=([1, 2, 3, 4], [4.0, float("nan"), 2.0, 1.0]), b=([2], [float("inf")]))
    assert {"<loss> & more", "step", "loss", "a, last 1", "2", "3"} <= _words(root)
    assert not any(word.startswith("b,") for word in _words(root))
    assert "nan" not in ElementTree.tostring(root, "unicode").lower()
    assert len(_drawn(a=([7], [2.0])).findall(f"{_SVG}circle")) == 1
    assert drawing.curves({"a": ([1], [float("nan")])}, "t") == ""
    assert drawing.curves({}, "t") == ""


def test_a_first_loss_that_towers_above_the_others_does_not_hide_them() -> None:
    steps = [float(step) for step in range(100)]
    root = _drawn(a=(steps, [5000.0, *(2 - step / 100 for step in steps[1:])]))
    lines = [each.get("d") or "" for each in root.iter(f"{_SVG}path") if each.get("stroke-width") == "1.8"]
    downs = {point.split()[1] for point in lines[0][1:].split("L")}
    assert len(downs) > 50, "the others are told apart"
    assert all(40 <= float(down) <= 312 for down in downs), "nothing leaves the frame"


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    steps = [float(step) for step in range(10_001)]
    text = drawing.curves({"a": (steps, [10_000 - step for step in steps])}, "t")
    assert len(text) < 20_000
    assert "a, last 0<" in text
    assert drawing.ticks(1, 200) == [50, 100, 150, 200]
