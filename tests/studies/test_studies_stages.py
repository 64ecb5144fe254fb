"""How far a diagnosis is, as it tells it."""

from __future__ import annotations

from mixln.studies.stages import Reported


def test_bars_begin_at_none_and_end_at_all() -> None:
    told: list[tuple[str, int, int]] = []
    reported = Reported(["a", "b"], "letters", lambda *step: told.append(step))
    assert list(reported) == ["a", "b"]
    assert told == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2)]


def test_several_passes_are_one_bar() -> None:
    told: list[int] = []
    reported = Reported("ab", "letters", lambda _stage, done, _total: told.append(done), passes=2)
    assert [*reported, *reported] == ["a", "b", "a", "b"]
    assert told == [0, 1, 2, 3, 4]
    assert list(Reported("ab", "letters", None)) == ["a", "b"]
