"""The tables of the pages are those that the figures in results/ give."""

import pytest

from launch import results_tables


@pytest.mark.parametrize("page", results_tables.PAGES, ids=lambda page: page.name)
def test_a_page_has_its_tables_as_the_results_give_them(page):
    text = page.read_text()
    assert results_tables.filled(text) == text, "run: python launch/results_tables.py"


def test_every_table_is_in_a_page():
    text = "".join(page.read_text() for page in results_tables.PAGES)
    assert [name for name in results_tables.TABLES if f"<!-- {name} -->" not in text] == []


def test_a_number_that_was_changed_by_hand_is_put_right():
    page = results_tables.PAGES[0].read_text()
    row = next(line for line in page.splitlines() if line.startswith("| GRPO |"))
    assert results_tables.filled(page.replace(row, row.replace("0.", "1."))) == page
