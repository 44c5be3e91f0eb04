"""The holidays tool, for countries and regions."""

import pytest

from .asking import ask

pytestmark = pytest.mark.requires("holidays", "lunar_python")


def test_holidays_of_countries():
    china = ask("holidays", "zh", country="中国", year=2026)
    assert "2026-02-17 春节" in china.content
    assert "2026-02-14" in china.artifact["data"]["weekend_workdays"]
    assert china.artifact["data"] == ask("holidays", "zh", country="china", year=2026).artifact["data"]
    later = ask("holidays", country="CN", year=2027)
    assert later.status == "success"
    assert "are not known here" in later.content
    assert "Epiphany" in ask("holidays", country="Germany", region="BY", year=2026).content
    assert "Epiphany" not in ask("holidays", country="Germany", year=2026).content
    assert ask("holidays", country="United States").content.startswith("Public holidays of US in 2026")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"country": "Germny"}, "did you mean DE"),
        ({"country": "US", "region": "ZZ"}, "no region 'ZZ'"),
        ({"country": "CN", "year": 1800}, "from 1950 to 2100"),
    ],
)
def test_holidays_that_are_not_known_are_explained(arguments, message):
    answer = ask("holidays", **arguments)
    assert answer.status == "error"
    assert message in answer.content
