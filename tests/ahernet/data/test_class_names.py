import pytest

from ahernet.data.class_names import look_alikes, warn_of_look_alikes


@pytest.mark.parametrize("other", ["Drinking coffee", "drinking  coffee", "drinking coffee ", "drinking\u00a0coffee"])
def test_names_that_differ_in_case_or_spaces_look_alike(other):
    assert look_alikes(["drinking coffee", "tai chi", other]) == [("drinking coffee", other)]


def test_signs_may_be_composed_in_two_ways():
    assert look_alikes(["caf\u00e9", "cafe\u0301", "cafe"]) == [("caf\u00e9", "cafe\u0301")]


def test_a_name_that_is_given_twice_is_one():
    assert look_alikes(["a", "b", "a"]) == []


def test_one_line_names_the_first_pair_and_counts_the_others(capsys):
    warn_of_look_alikes(["a", "b"], "x.json")
    assert not capsys.readouterr().err
    warn_of_look_alikes(["a", "A", "A ", "b"], "x.json")
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.json: classes 'a' and 'A' look alike (and 1 more)" in line
