"""The split on its own: shares, groups, tables, given sides."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.data.split import TRAIN, VALIDATION, split


def key(number: int) -> bytes:
    return (number * 2654435761 % 2**32).to_bytes(4)


def test_a_fifth_is_for_validation_and_never_more_than_ten_thousand():
    for count, expected in ((2, 1), (5, 1), (100, 20), (50_000, 10_000), (70_000, 10_000)):
        sides = split([[key(index)] for index in range(count)], ["images"] * count, [None] * count)
        assert sides.count(VALIDATION) == expected


def test_order_does_not_matter():
    keys = [[key(index)] for index in range(300)]
    sides = split(keys, ["images"] * 300, [None] * 300)
    assert split(keys[::-1], ["images"] * 300, [None] * 300)[::-1] == sides


def test_rows_connected_over_others_stay_together():
    # 0-1 share an input, 1-2 a target, so 0 and 2 belong together
    chain = [[b"a", b"x"], [b"a", b"y"], [b"b", b"y"]]
    rest = [[key(index), key(index + 500)] for index in range(20)]
    assert len(set(split(chain + rest, ["input+target"] * 23, [None] * 23)[:3])) == 1


def test_a_few_large_groups_leave_something_on_both_sides():
    keys = [[b"large"]] * 90 + [[b"small"]] * 10
    sides = split(keys, ["images"] * 100, [None] * 100)
    assert sides == [TRAIN] * 90 + [VALIDATION] * 10


def test_given_sides_are_kept_and_rows_without_one_are_for_training():
    keys = [[key(index)] for index in range(6)]
    given_sides = [TRAIN, None, VALIDATION, None, VALIDATION, None]
    assert split(keys, ["images"] * 6, given_sides) == [TRAIN, TRAIN, VALIDATION, TRAIN, VALIDATION, TRAIN]
    assert split(keys, ["images"] * 6, [TRAIN] * 6).count(VALIDATION) == 1  # one side alone says nothing


def test_copies_on_the_given_validation_side_go():
    keys = [[b"a"], [b"b"], [b"a"], [b"c"]]
    assert split(keys, ["images"] * 4, [TRAIN, TRAIN, VALIDATION, VALIDATION]) == [TRAIN, TRAIN, None, VALIDATION]


def test_a_table_that_cannot_be_divided_leaves_all_for_training():
    keys = [[b"a"], [b"b"], [b"c"]]
    assert set(split(keys, ["a", "a", "b"], [None] * 3)) == {TRAIN}


@pytest.mark.parametrize("tables", [("images",), ("a", "b")])
def test_no_key_is_ever_on_both_sides(tables):
    @given(st.lists(st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=3), st.sampled_from(tables),
                              st.sampled_from([None, TRAIN, VALIDATION])), min_size=1, max_size=60))  # fmt: skip
    def holds(rows):
        sides = split([[key(k) for k in keys] for keys, _, _ in rows], [t for _, t, _ in rows], [g for *_, g in rows])
        found = defaultdict(set)
        for (keys, _, _), side in zip(rows, sides, strict=True):
            for k in keys if side else []:
                found[k].add(side)
        assert all(len(side) == 1 for side in found.values())
        assert TRAIN in sides
        if VALIDATION in sides and not {TRAIN, VALIDATION} <= {g for *_, g in rows}:
            for table in {t for _, t, _ in rows}:
                assert {s for s, (_, t, _) in zip(sides, rows, strict=True) if t == table} == {TRAIN, VALIDATION}

    holds()
