"""The trace viewer in a real browser: fast with 20,000 traces, by mouse and by keys, on any screen."""

import itertools
import random

import pytest

from sdistill.analysis.measure import BASE
from sdistill.report import drawing, figures, page, traces
from sdistill.report.lookup import ANSWER, ANSWER_EMA, GRPO, SFT, SOLUTION
from sdistill.report.runs import read_run
from tests.report.synthetic import fixes_measurements, paper_measurements, shown, write_rows, write_run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> maybe </pre> wait"
LONG = "perhaps " + "9 " * 30_000 + "the end"
OPENS, FILTERS = 2.0, 0.2  # seconds, at most
WORDS = ("8", "-3", "perhaps", "+", "7", "-6", "wait", "yes", "so", "4")


def made_up(problem, sample, rng, **fields):
    text = " ".join(rng.choices(WORDS, k=120))
    return {
        "problem": f"8 4 {problem} = 5", "sample": sample, "prompt": f"8 4 {problem} = 5 <think>",
        "text": text, "correct": problem % 2 == 0, "finish": "stop", "length": 120,
        "num_epistemic": text.count("perhaps") + text.count("wait"), **fields,
    }  # fmt: skip


def write_page(path):
    """The page of a run, with one figure in place of all: drawing takes long."""
    run = read_run(path)
    svg = drawing.to_svg(figures.sft(run.index))
    svgs = {plot.__name__: svg for plots in figures.FIGURES.values() for plot in plots}
    (path / "report.html").write_text(page.run_page(run, traces.embed([run]), svgs), encoding="utf-8")
    return path / "report.html"


@pytest.fixture(scope="module")
def many(chromium, tmp_path_factory):
    """A page with as many traces as go into one, each of some 300 characters."""
    run = tmp_path_factory.mktemp("many")
    rng = random.Random(0)
    conditions = (BASE, GRPO, SOLUTION, ANSWER, ANSWER_EMA)
    for condition in conditions:
        rows = [
            made_up(p, s, rng) for p in range(traces.MAX_TRACES // len(conditions) // 4) for s in range(4)
        ]
        write_rows(run / f"runs/on_policy/{condition.label}/seed0/k4_test-000040.jsonl.gz", rows)
    return write_page(run)


@pytest.fixture(scope="module")
def few(chromium, tmp_path_factory):
    """A whole study, and responses with everything that a trace may carry."""
    run = write_run(tmp_path_factory.mktemp("few"), paper_measurements() + fixes_measurements())
    rng = random.Random(0)
    tokens = ["8", " -3", " may", "be", " 4", " wait"]
    by_token = {"tokens": tokens, "divergence": [0.0, 0.1, 2.0, 0.5, -0.3, 1.0]}
    taught = {"attribution": by_token, "context": "shown: + - <b>", "text": "".join(tokens)}
    rows = [
        made_up(0, 0, rng, **taught),
        made_up(1, 0, rng, text=HOSTILE),
        made_up(2, 0, rng, text=LONG),
        made_up(3, 0, rng, finish="length", feedback="no answer"),
        made_up(4, 0, rng, attribution={"tokens": ["ten chars "] * 6_000, "divergence": [1.0] * 6_000}),
    ]
    write_rows(run / f"runs/sft/{SFT[1].label}/seed0/k3_test-000009.jsonl.gz", rows)
    return write_page(run)


def ready(page):
    page.wait_for_selector("html[data-traces=ready]", state="attached")
    return page


def only(page, **chosen):
    for field, value in chosen.items():
        page.select_option(f"#{field}", value)
    return page


def test_twenty_thousand_traces_open_at_once_and_only_those_in_sight_exist(many, open_page):
    assert many.stat().st_size < 8_000_000
    times = []
    for _ in range(3):  # the best of them: other tests run beside
        page = ready(open_page(many))
        times.append(page.evaluate("performance.getEntriesByName('traces ready')[0].startTime") / 1000)
    seconds = min(times)
    print(f"opened in {seconds:.2f} s, {many.stat().st_size / 1e6:.1f} MB")
    assert seconds < OPENS
    assert page.inner_text("#found").startswith("20,000 of 20,000 traces")
    assert 5 < page.locator(".row").count() < 60
    page.evaluate("list => { list.scrollTop = list.scrollHeight }", page.query_selector("#list"))
    page.wait_for_selector("#row-19999")
    assert page.locator(".row").count() < 60


def test_filters_answer_at_once(many, open_page):
    page = ready(open_page(many))
    for field, value in [
        ("query", "8 4 77"),
        ("query", "nowhere to be found"),
        ("query", "a"),
        ("condition", GRPO.label),
        ("verdict", "wrong"),
        ("order", "words"),
    ]:
        seconds = page.evaluate(
            """async ([field, value]) => {
              const times = [];
              const input = document.getElementById(field);
              const set = (value) => {
                input.value = value;
                input.dispatchEvent(new Event("input", { bubbles: true }));
              };
              for (let i = 0; i < 7; i++) {
                set("");
                await new Promise(requestAnimationFrame);
                const start = performance.now();
                set(value);
                document.getElementById("list").getBoundingClientRect();  // laid out
                times.push((performance.now() - start) / 1000);
              }
              set("");
              return Math.min(...times);  // other tests run beside
            }""",
            [field, value],
        )
        print(f"{field}={value!r}: {1000 * seconds:.0f} ms")
        assert seconds < FILTERS, (field, value)


def test_searches_and_filters_find_what_fits(many, open_page):
    page = ready(open_page(many))
    page.fill("#query", "8 4 77 =")
    assert page.inner_text("#found").startswith("20 of 20,000 traces: 0 % correct")
    only(page, condition=GRPO.label)
    assert page.inner_text("#found").startswith("4 of 20,000")
    assert "GRPO" in page.inner_text("#chosen h3")
    page.fill("#query", "nowhere")
    assert page.inner_text("#found") == "No trace fits; widen the search or the filters."
    page.fill("#query", "")
    only(page, condition="", order="words")
    first = page.locator(".row small").all_inner_texts()
    page.focus("#list")
    page.keyboard.press("End")
    page.wait_for_selector("#row-19999")
    counts = [int(text.split()[-2]) for text in first + page.locator(".row small").all_inner_texts()]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_keys_go_through_the_list_and_to_the_search(many, open_page):
    page = ready(open_page(many))
    page.focus("#list")
    for key, place in [("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 19_999), ("Home", 0)]:
        page.keyboard.press(key)
        assert page.get_attribute("#list", "aria-activedescendant") == f"row-{place}"
        page.wait_for_selector(f"#row-{place}[aria-selected=true]")
    page.keyboard.press("PageDown")
    assert int(page.get_attribute("#list", "aria-activedescendant")[4:]) > 5
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("77/")
    assert page.input_value("#query") == "77/"


def test_markup_in_a_response_is_text(few, open_page):
    page = only(ready(open_page(few)), section="sft")
    page.fill("#query", "alert")
    assert page.inner_text("#chosen pre >> nth=1") == HOSTILE
    assert page.locator("#chosen mark").all_inner_texts() == ["maybe", "wait"]
    assert page.locator("#chosen img, #chosen script").count() == 0


def test_tokens_take_the_colour_of_their_divergence(few, open_page):
    page = only(ready(open_page(few)), section="sft")
    page.fill("#query", "shown: +")
    assert page.inner_text("#chosen pre >> nth=1") == "8 -3 maybe 4 wait"
    strengths = page.eval_on_selector_all(
        ".token", "ts => ts.map(t => Number(t.style.getPropertyValue('--d')))"
    )
    assert strengths[0] == 0 and 0 < strengths[1] < strengths[3] < strengths[5] == strengths[2] == 1
    colours = page.eval_on_selector_all(".token", "ts => ts.map(t => getComputedStyle(t).backgroundColor)")
    assert len(set(colours)) == 5
    assert page.locator(".token.below").all_inner_texts() == [" 4"]
    assert page.locator(".token.word").all_inner_texts() == [" may", "be", " wait"]
    assert page.is_visible("#legend") and "3.30 nats in all" in page.inner_text("#chosen")


def test_beside_a_response_stands_the_teachers_context(few, open_page):
    page = only(ready(open_page(few)), section="sft")
    page.fill("#query", "shown: +")
    assert page.inner_text("#other h3") == "The teacher's context"
    assert page.inner_text("#other pre") == "shown: + - <b>"
    page.fill("#query", "")
    only(page, section="richness", condition=shown("none").label)
    assert page.inner_text("#other h3").startswith("full solution (s)")
    only(page, condition=shown("answer").label)
    assert page.inner_text("#other h3").startswith("no context (∅)")
    only(page, condition="", section="on_policy", dataset="k4")
    only(page, condition=SOLUTION.label)
    assert page.inner_text("#other h3").startswith("base")


def test_what_a_reader_puts_beside_it_stays_there(few, open_page):
    page = only(ready(open_page(few)), section="on_policy", condition="base")
    value = page.eval_on_selector_all("#beside option", "os => os.find(o => o.text.includes('GRPO')).value")
    page.select_option("#beside", value)
    page.focus("#list")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
        assert page.inner_text("#other h3").startswith("GRPO")


def test_an_enormous_response_is_cut_with_a_way_to_see_it_all(few, open_page):
    page = only(ready(open_page(few)), section="sft")
    page.fill("#query", "the end")
    assert len(page.inner_text("#chosen pre >> nth=1")) < 25_000
    page.click("text=Show all 60,015 characters")
    assert page.inner_text("#chosen pre >> nth=1").endswith("the end")
    assert page.locator("#chosen button").count() == 0


def test_an_enormous_response_is_coloured_as_far_as_it_is_shown(few, open_page):
    page = only(ready(open_page(few)), section="sft")
    page.fill("#query", "ten chars")
    assert page.locator("#chosen .token").count() == 2_000
    page.click("text=Show all 60,000 characters")
    assert page.locator("#chosen .token").count() == 6_000


def test_what_was_cut_off_is_no_mere_mistake(few, open_page):
    page = only(ready(open_page(few)), section="sft", verdict="cut")
    assert page.inner_text("#found").startswith("1 of ")
    assert page.inner_text("#chosen .badge") == "cut off" and "no answer" in page.inner_text("#chosen")


def test_nothing_sticks_out_and_text_can_be_read(few, open_page):
    page = ready(open_page(few))
    for scheme, width in itertools.product(["light", "dark"], [360, 800, 1280]):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        ink, paper = page.evaluate(
            """() => {
              const style = getComputedStyle(document.body);
              return [style.color, style.backgroundColor].map(
                (text) => text.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0));
            }"""
        )
        assert (ink > paper) == (scheme == "dark") and abs(ink - paper) > 400


def test_on_paper_there_are_claims_and_the_chosen_pair_only(few, open_page):
    page = ready(open_page(few))
    page.emulate_media(media="print")
    assert not page.is_visible("#list") and not page.is_visible(".filters")
    assert page.is_visible("#chosen") and page.is_visible("#claims")
    assert page.pdf().startswith(b"%PDF")


def test_without_scripts_all_but_the_viewer_is_there(few, open_page):
    page = open_page(few, java_script_enabled=False)
    assert page.is_visible("#claims") and page.is_visible("#unavailable")
    assert not page.is_visible("#viewer")
    assert not ready(open_page(few)).is_visible("#unavailable")
