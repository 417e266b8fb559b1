"""Names of decoders, metrics and the like lead to what is registered under them."""

import sys

import pytest

from model.registry import Registry


def test_an_entry_is_imported_when_it_is_first_asked_for() -> None:
    sys.modules.pop("colorsys", None)
    kinds = Registry[object]("kind", poem="colorsys:ONE_THIRD", lost="no_such_module:nothing")
    assert list(kinds) == ["poem", "lost"]
    assert "colorsys" not in sys.modules
    assert kinds["poem"] == pytest.approx(1 / 3)
    assert "colorsys" in sys.modules
    with pytest.raises(ModuleNotFoundError):
        kinds["lost"]


def test_a_name_is_registered_once_and_can_be_removed() -> None:
    kinds = Registry[int]("kind", one=1)
    with pytest.raises(ValueError, match="kind 'one' is registered already"):
        kinds.register("one", 2)
    kinds.unregister("one")
    assert "one" not in kinds
    with pytest.raises(KeyError):
        kinds["one"]


def test_an_unknown_name_is_answered_with_the_nearest_and_all_others() -> None:
    kinds = Registry[int]("decoder", lstm=1, transformer=2)
    assert kinds.unknown("transfomer") == "There is no decoder 'transfomer'. Did you mean transformer? Choose one of: lstm, transformer."
    assert kinds.unknown("xyz") == "There is no decoder 'xyz'. Choose one of: lstm, transformer."
