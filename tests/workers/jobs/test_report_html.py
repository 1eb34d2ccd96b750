"""The page of a report: what is long or wide is folded, what is foreign is escaped."""

from models.reports.core.base import Curve
from workers.jobs.kinds import report_html as pages
from workers.jobs.kinds import report_plots as plots

VALUE = {
    "report": "adversarial_detection",
    "model": "<b>judge</b>",
    "dataset": "digits",
    "seed": 0,
    "notes": ["a < b"],
    "params": {"steps": 3},
    "facts": {"eps": 0.5, "share": 0.25, "share_low": 0.1, "share_high": 0.4, "learned": ["pgd"], "table": {"x": 1}},
}


def test_intervals_stand_beside_their_numbers_and_foreign_text_is_text():
    tables = {"attacks": [{"attack": "pgd", "hits": None, "hits_low": 0.0, "hits_high": 1.0, "left_low": 2}]}
    text = pages.page(VALUE, tables, {}).decode()
    assert "0.25 (0.1 to 0.4)" in text and "share_low" not in text and "hits_low" not in text
    assert "left_low" in text, "a number of its own, with no other end"
    assert "<b>judge" not in text and "&lt;b&gt;judge" in text and "a &lt; b" in text
    assert "Report adversarial detection" in text and "pgd" in text and "<td>table</td>" not in text


def test_lines_of_equal_values_can_both_be_seen():
    both = plots.render(Curve("t", "x", "y", [0, 1], {"one": [0, 1], "two": [0, 1]}))["svg"].decode()
    assert "stroke-width: 3.5" in both and "stroke-width: 1.5" in both
