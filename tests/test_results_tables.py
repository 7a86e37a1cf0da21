"""The tables of the README are those that the figures in results/ give."""

from launch import results_tables


def test_the_readme_has_every_table_as_the_results_give_it():
    page = results_tables.PAGE.read_text()
    assert [name for name in results_tables.TABLES if f"<!-- {name} -->" not in page] == []
    assert results_tables.filled(page) == page, "run: python launch/results_tables.py"


def test_a_number_that_was_changed_by_hand_is_put_right():
    page = results_tables.PAGE.read_text()
    row = next(line for line in page.splitlines() if line.startswith("| GRPO |"))
    assert results_tables.filled(page.replace(row, row.replace("0.", "1."))) == page
