"""Ask the reader to commit to an answer before a key result, and compare it afterwards.

A question and its answer are two pieces of HTML that find each other by a key. They work in a
static page and in a notebook alike; the reader's answers stay in the reader's browser.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from IPython.display import HTML

STYLE = """
<style>
.lmc-ask, .lmc-seen { border: 1px solid color-mix(in srgb, currentColor 25%, transparent);
  border-left: 4px solid #0072b2; border-radius: 6px; padding: .8rem 1rem; margin: 1rem 0;
  max-width: 54rem; color: inherit; font-size: 1rem; text-align: left; }
.lmc-seen { border-left-color: #009e73; }
.lmc-ask fieldset { border: 0; margin: 0; padding: 0; }
.lmc-ask legend { font-weight: 600; padding: 0; margin-bottom: .4rem; font-size: 1rem;
  width: auto; color: inherit; }
.lmc-ask label { display: block; margin: .25rem 0; font-weight: 400; }
.lmc-ask input[type=number] { width: 7em; font: inherit; }
.lmc-ask button { font: inherit; padding: .25rem .8rem; margin-top: .5rem; cursor: pointer; }
.lmc-ask output, .lmc-seen output { display: block; margin-top: .4rem; font-weight: 600; }
html[data-theme="dark"] .bd-content div.cell_output .text_html.text_html:has(> .lmc-ask),
html[data-theme="dark"] .bd-content div.cell_output .text_html.text_html:has(> .lmc-seen)
  { background: none; color: inherit; padding: 0; }
</style>
"""

STORE = """
const store = window.lmcPredictions = window.lmcPredictions || {};
const kept = (key) => { if (key in store) return store[key];
  try { const v = sessionStorage.getItem("lmc-" + key); return v === null ? null : JSON.parse(v); }
  catch (e) { return null; } };
"""

ASK = """
<script>(() => {
%(store)s
const key = %(key)s;
const boxes = document.querySelectorAll('.lmc-ask[data-key="' + key + '"]');
const box = boxes[boxes.length - 1], button = box.querySelector("button");
const out = box.querySelector("output"), inputs = [...box.querySelectorAll("input")];
box.addEventListener("keydown", (event) => event.stopPropagation());
const show = (value, text) => { out.textContent = "Committed: " + text; };
button.addEventListener("click", () => {
  const chosen = inputs.find((i) => i.type === "number" ? i.value !== "" : i.checked);
  if (!chosen) { out.textContent = "Choose an answer first."; return; }
  const value = Number(chosen.value);
  const text = chosen.type === "number" ? chosen.value + " " + box.dataset.unit
    : chosen.parentElement.textContent.trim();
  store[key] = { value, text };
  try { sessionStorage.setItem("lmc-" + key, JSON.stringify(store[key])); } catch (e) {}
  show(value, text);
  document.dispatchEvent(new CustomEvent("lmc-prediction", { detail: key }));
});
const before = kept(key);
if (before) {
  for (const i of inputs) {
    if (i.type === "number") i.value = before.value;
    else i.checked = Number(i.value) === before.value;
  }
  show(before.value, before.text);
}
})();</script>
"""

SEEN = """
<script>(() => {
%(store)s
const key = %(key)s, answer = %(answer)s, tolerance = %(tolerance)s;
const boxes = document.querySelectorAll('.lmc-seen[data-key="' + key + '"]');
const out = boxes[boxes.length - 1].querySelector("output");
const compare = () => {
  const said = kept(key);
  if (!said) { out.textContent = "You have not committed to an answer above."; return; }
  const right = Math.abs(said.value - answer) <= tolerance;
  out.textContent = (right ? "You predicted it: " : "You predicted: ") + said.text
    + (right ? "." : ". Why is it different?");
};
document.addEventListener("lmc-prediction", (event) => { if (event.detail === key) compare(); });
compare();
})();</script>
"""


def ask(key: str, question: str, options: Sequence[str]) -> HTML:
    """A multiple-choice question that the reader answers before looking.

    Args:
        key: Name of the question, unique in the book.
        question: One sentence.
        options: At least two answers, one of which will turn out to be right.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: If the key or question is empty, or there are fewer than two different options.

    Taught in: book/start
    """
    if len(set(options)) < 2 or len(set(options)) != len(options):
        raise ValueError(f"a question needs at least two different options, got {list(options)}")
    choices = "".join(
        f'<label><input type="radio" name="lmc-{html.escape(key)}" value="{k}"> '
        f"{html.escape(option)}</label>"
        for k, option in enumerate(options)
    )
    return _question(key, question, choices, unit="")


def ask_number(
    key: str, question: str, *, low: float, high: float, step: float, unit: str = ""
) -> HTML:
    """A question whose answer is a number.

    Args:
        key: Name of the question, unique in the book.
        question: One sentence.
        low: Smallest number that can be entered.
        high: Largest number that can be entered.
        step: Step of the entry field.
        unit: Unit of the number.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: If the key or question is empty, or ``low`` is not below ``high``.

    Taught in: book/start
    """
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    field = (
        f'<label>From {low:g} to {high:g}: <input type="number" min="{low:g}" max="{high:g}" '
        f'step="{step:g}"> {html.escape(unit)}</label>'
    )
    return _question(key, question, field, unit=unit)


def _question(key: str, question: str, choices: str, *, unit: str) -> HTML:
    if not key or not question:
        raise ValueError("a question needs a key and a text")
    body = (
        f'<div class="lmc-ask" data-key="{html.escape(key)}" data-unit="{html.escape(unit)}" '
        'data-lm-suppress-shortcuts="true">'
        f"<fieldset><legend>Predict: {html.escape(question)}</legend>{choices}</fieldset>"
        '<button type="button">Commit</button><output aria-live="polite"></output></div>'
    )
    return HTML(STYLE + body + ASK % {"store": STORE, "key": json.dumps(key)})


def reveal(key: str, answer: float, text: str, *, tolerance: float = 0.0) -> HTML:
    """What happened, beside what the reader predicted.

    Args:
        key: Name of the question.
        answer: Index of the right option, or the number, as code found it.
        text: What happened, in one or two sentences.
        tolerance: How far a predicted number may be off.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: If the answer is not finite, or a text is empty.

    Taught in: book/start
    """
    if not key or not text or not abs(answer) < float("inf"):
        raise ValueError(f"reveal needs a key, a text and a finite answer, got {answer}")
    body = (
        f'<div class="lmc-seen" data-key="{html.escape(key)}">{html.escape(text)}'
        '<output aria-live="polite"></output></div>'
    )
    numbers = {"answer": json.dumps(answer), "tolerance": json.dumps(tolerance)}
    return HTML(STYLE + body + SEEN % {"store": STORE, "key": json.dumps(key), **numbers})
