"""The variants of notebook 05."""

import pytest

from mnv3lib import ablations
from mnv3lib.errors import InputError


def test_an_axis_changes_what_it_says_and_nothing_else():
    variants = ablations.recipes("strides", width=0.25, epochs=2)
    assert [made.lowered_strides for made in variants.values()] == [0, 1, 2, 3]
    for made in variants.values():
        assert (made.width, made.epochs) == (0.25, 2)
    differing = {
        name
        for made in variants.values()
        for name, value in made.as_dict().items()
        if value != variants["0-lowered"].as_dict()[name]
    }
    assert differing == {"lowered_strides", "variant"}
    assert len({made.run for made in variants.values()}) == len(variants)


def test_unknown_axis_and_a_change_of_what_is_varied_are_named():
    with pytest.raises(InputError, match="unknown axis 'colour': choose from strides"):
        ablations.recipes("colour")
    with pytest.raises(InputError, match="lowered_strides is what the axis strides varies"):
        ablations.recipes("strides", lowered_strides=1)


def test_table_of_no_records():
    assert ablations.table({}).empty
