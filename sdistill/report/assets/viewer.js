"use strict";
// The trace viewer. Text of a run is only put into text nodes, so none of it can be markup.
(async () => {
  const CUT = 20000; // characters of a response that are shown at once
  const $ = (id) => document.getElementById(id);
  const packed = $("data").textContent;
  if (!packed || !$("viewer")) return;

  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const { words, scale, groups, texts, traces } = await new Response(stream).json();
  const count = traces.group.length;
  const epistemic = new RegExp(`\\b(?:${words.join("|")})\\b`, "gi");
  const verdict = (i) => (traces.finish[i] !== "stop" ? "cut" : traces.correct[i] ? "correct" : "wrong");
  const response = (i) => traces.tokens[i]?.join("") ?? traces.text[i];
  const group = (i) => groups[traces.group[i]];
  const text = (index) => (index < 0 ? "" : texts[index]);
  const divergence = traces.divergence.map((values) =>
    values ? values.reduce((sum, value) => sum + value, 0) / values.length : -Infinity);

  // A search looks through the responses, and through each prompt, context and problem once.
  const loweredTexts = texts.map((value) => value.toLowerCase());
  const loweredResponses = Array.from({ length: count }, (_, i) => response(i).toLowerCase());

  const samples = new Map(); // run, data and problem → traces of it
  for (let i = 0; i < count; i++) {
    const key = `${traces.problem[i]}/${group(i).dataset}`;
    samples.get(key)?.push(i) ?? samples.set(key, [i]);
  }
  const sameProblem = (i) => samples.get(`${traces.problem[i]}/${group(i).dataset}`);

  // ── Filters ────────────────────────────────────────────────────────────────────────────────────

  const FIELDS = ["run", "section", "condition", "dataset"];
  const VERDICTS = { "": "all", correct: "correct", wrong: "wrong", cut: "cut off or failed" };
  const ORDERS = {
    "": ["as sampled", null],
    longest: ["longest first", (i) => traces.length[i]],
    shortest: ["shortest first", (i) => -traces.length[i]],
    words: ["most epistemic words first", (i) => traces.num_epistemic[i]],
    divergence: ["largest mean divergence first", (i) => divergence[i]],
  };

  function options(select, entries) {
    const kept = select.value;
    select.replaceChildren(...entries.map(([value, label]) => new Option(label, value)));
    select.value = entries.some(([value]) => value === kept) ? kept : entries[0][0];
  }

  // Each field offers the values that the fields before it leave.
  function offer() {
    let left = groups;
    for (const field of FIELDS) {
      const values = new Map(left.map((g) => [g[field], field === "condition" ? g.name : g[field]]));
      options($(field), [["", "all"], ...values]);
      $(field).parentElement.hidden = new Set(groups.map((g) => g[field])).size < 2;
      left = left.filter((g) => !$(field).value || g[field] === $(field).value);
    }
    return left;
  }

  let found = [];
  let chosen = -1; // place in `found`

  function filter() {
    const wanted = new Set(offer());
    const keep = groups.map((g) => wanted.has(g));
    const query = $("query").value.trim().toLowerCase();
    const inTexts = query ? loweredTexts.map((value) => value.includes(query)) : [];
    const wantedVerdict = $("verdict").value;
    found = [];
    for (let i = 0; i < count; i++) {
      if (!keep[traces.group[i]] || (wantedVerdict && verdict(i) !== wantedVerdict)) continue;
      if (query && !inTexts[traces.problem[i]] && !inTexts[traces.prompt[i]] && !inTexts[traces.context[i]]
          && !loweredResponses[i].includes(query)) continue;
      found.push(i);
    }
    const measure = ORDERS[$("order").value][1];
    if (measure) found.sort((a, b) => measure(b) - measure(a) || a - b);
    $("list").scrollTop = 0;
    $("rows").style.height = `calc(var(--row) * ${found.length})`;
    describeFound();
    choose(found.length ? 0 : -1);
  }

  function describeFound() {
    const mean = (values) => found.reduce((sum, i) => sum + Number(values[i]), 0) / found.length;
    $("found").textContent = !found.length ? "No trace fits; widen the search or the filters."
      : `${found.length.toLocaleString("en")} of ${count.toLocaleString("en")} traces: `
        + `${(100 * mean(traces.correct)).toFixed(0)} % correct, on average ${mean(traces.length).toFixed(1)} tokens `
        + `and ${mean(traces.num_epistemic).toFixed(2)} epistemic words.`;
  }

  // ── The list: only visible rows exist ──────────────────────────────────────────────────────────

  const list = $("list");
  const SIGNS = { correct: "✓", wrong: "✗", cut: "…" };

  function element(tag, className, content = "") {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.textContent = content;
    return made;
  }

  const rowHeight = () => $("rows").offsetHeight / found.length;

  function draw() {
    if (!found.length) return $("rows").replaceChildren();
    const height = rowHeight();
    const first = Math.max(0, Math.floor(list.scrollTop / height) - 5);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 5);
    $("rows").replaceChildren(...Array.from({ length: last - first }, (_, k) => row(first + k)));
  }

  function row(place) {
    const i = found[place];
    const g = group(i);
    const made = element("div", "row");
    made.id = `row-${place}`;
    made.style.top = `calc(var(--row) * ${place})`;
    made.setAttribute("role", "option");
    made.setAttribute("aria-selected", String(place === chosen));
    made.setAttribute("aria-setsize", String(found.length));
    made.setAttribute("aria-posinset", String(place + 1));
    const sign = element("span", `sign ${verdict(i)}`, SIGNS[verdict(i)]);
    sign.title = verdict(i);
    const about = `${g.name} · ${g.dataset} · ${traces.length[i]} tokens, ${traces.num_epistemic[i]} words`;
    made.append(sign, element("span", "problem", text(traces.problem[i])), element("small", "", about));
    made.addEventListener("click", () => choose(place));
    return made;
  }

  function choose(place) {
    chosen = place;
    if (place >= 0) {
      const height = rowHeight();
      const top = place * height;
      if (top < list.scrollTop) list.scrollTop = top;
      if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
      list.setAttribute("aria-activedescendant", `row-${place}`);
    } else {
      list.removeAttribute("aria-activedescendant");
    }
    draw();
    show();
  }

  // ── The chosen trace, and the one beside it ────────────────────────────────────────────────────

  const isGuided = (g) => g.role === "guided" || g.role === "solution";

  // The teacher's context, or else the response that best shows how the teacher would continue.
  function guess(i, others) {
    const g = group(i);
    if (traces.context[i] >= 0) return "context";
    const near = others.filter((j) => group(j).run === g.run && group(j).section === g.section
      && (g.dataset !== "train" || group(j) === g));
    const pick = (fits) => near.find(fits) ?? -1;
    let j = -1;
    if (g.dataset === "train") j = pick((k) => traces.step[k] === traces.step[i] && traces.correct[k]); // its demonstration
    else if (isGuided(g)) j = pick((k) => group(k).role === "none");
    else if (near.some((k) => isGuided(group(k)))) j = pick((k) => group(k).role === "solution");
    else if (g.role !== "base") j = pick((k) => group(k).role === "base");
    if (j < 0) j = pick((k) => group(k) !== g);
    if (j < 0) j = others[0] ?? -1;
    return j < 0 ? "" : String(j);
  }

  const several = new Set(groups.map((g) => g.run)).size > 1;
  function label(j) {
    const g = group(j);
    const where = several ? `${g.run}, ${g.section}` : g.section;
    return `${SIGNS[verdict(j)]} ${g.name} (${where}, step ${traces.step[j]}, sample ${traces.sample[j]})`;
  }

  let besideGroup = null; // the reader's choice, which stays while the list is browsed

  function show() {
    const i = found[chosen];
    $("legend").hidden = true;
    if (i === undefined) {
      $("chosen").replaceChildren(element("p", "note", "Nothing to show."));
      $("other").replaceChildren();
      $("beside").replaceChildren();
      return;
    }
    const others = sameProblem(i).filter((j) => j !== i);
    const entries = others.map((j) => [String(j), label(j)]);
    if (traces.context[i] >= 0) entries.unshift(["context", "the teacher's context"]);
    if (!entries.length) entries.push(["", "no other response to this problem"]);
    const same = others.filter((j) => traces.group[j] === besideGroup);
    const kept = same.find((j) => traces.sample[j] === traces.sample[i]) ?? same[0];
    options($("beside"), entries);
    $("beside").value = kept !== undefined ? String(kept) : guess(i, others);
    $("chosen").replaceChildren(...trace(i));
    showBeside();
  }

  function showBeside() {
    const value = $("beside").value;
    if (value === "context") {
      const context = text(traces.context[found[chosen]]);
      $("other").replaceChildren(element("h3", "", "The teacher's context"), body(context, null, null));
    } else if (value) {
      $("other").replaceChildren(...trace(Number(value)));
    } else {
      $("other").replaceChildren(element("p", "note", "There is no other response to this problem here."));
    }
  }

  function trace(i) {
    const g = group(i);
    const heading = element("h3", "", `${g.name} `);
    const named = { correct: "correct", wrong: "wrong", cut: traces.finish[i] === "error" ? "failed" : "cut off" };
    heading.append(element("span", `badge ${verdict(i)}`, named[verdict(i)]));
    const where = `${several ? `${g.run}, ` : ""}${g.section}, ${g.dataset}, seed ${g.seed}, step ${traces.step[i]}`;
    const about = `${where}, sample ${traces.sample[i]}. ${traces.length[i]} tokens, ${traces.num_epistemic[i]} epistemic words.`;
    const parts = [heading, element("small", "", about), element("h4", "", "Prompt")];
    const prompt = body(text(traces.prompt[i]) || text(traces.problem[i]), null, null);
    prompt.className = "prompt";
    parts.push(prompt, element("h4", "", "Response"), body(response(i), traces.tokens[i], traces.divergence[i]));
    if (traces.feedback[i] >= 0) parts.push(element("h4", "", "Feedback"), body(text(traces.feedback[i]), null, null));
    if (traces.divergence[i]) {
      const sum = traces.divergence[i].reduce((total, value) => total + value, 0);
      parts.push(element("small", "", `Divergence: ${sum.toPrecision(3)} nats in all, ${divergence[i].toPrecision(3)} per token.`));
      $("legend").hidden = false;
    }
    return parts;
  }

  function body(content, tokens, values) {
    const made = element("div", "");
    const pre = element("pre", "");
    const fill = (text) => {
      pre.replaceChildren();
      if (tokens) colour(pre, tokens, values, text);
      else annotate(pre, text);
    };
    fill(content.slice(0, CUT));
    made.append(pre);
    if (content.length > CUT) {
      const more = element("button", "", `Show all ${content.length.toLocaleString("en")} characters`);
      more.type = "button";
      more.addEventListener("click", () => {
        more.remove();
        fill(content);
      });
      made.append(more);
    }
    return made;
  }

  function annotate(pre, content) {
    let end = 0;
    for (const match of content.matchAll(epistemic)) {
      pre.append(content.slice(end, match.index), element("mark", "", match[0]));
      end = match.index + match[0].length;
    }
    pre.append(content.slice(end));
  }

  // The tokens that make up `content`. A word may be spread over several; each of them is underlined.
  function colour(pre, tokens, values, content) {
    const marked = Array.from(content.matchAll(epistemic), (match) => [match.index, match.index + match[0].length]);
    let next = 0;
    for (let t = 0, start = 0; t < tokens.length && start < content.length; start += tokens[t++].length) {
      const end = start + tokens[t].length;
      while (next < marked.length && marked[next][1] <= start) next++;
      const word = next < marked.length && marked[next][0] < end;
      const made = element("span", `token${values[t] < 0 ? " below" : ""}${word ? " word" : ""}`, tokens[t]);
      made.style.setProperty("--d", Math.min(1, Math.sqrt(Math.abs(values[t]) / (scale || 1))).toFixed(3));
      made.title = `${values[t]} nats`;
      pre.append(made);
    }
  }

  // ── Events ─────────────────────────────────────────────────────────────────────────────────────

  options($("verdict"), Object.entries(VERDICTS));
  const orders = Object.entries(ORDERS).filter(([key]) => key !== "divergence" || scale > 0);
  options($("order"), orders.map(([key, [title]]) => [key, title]));
  $("scale").textContent = `0 to ${scale.toPrecision(2)} nats or more${
    traces.divergence.some((values) => values?.some((value) => value < 0)) ? "; blue below 0" : ""}`;
  for (const id of ["query", "verdict", "order", ...FIELDS]) $(id).addEventListener("input", filter);
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  $("beside").addEventListener("input", () => {
    const value = $("beside").value;
    besideGroup = value && value !== "context" ? traces.group[Number(value)] : null;
    showBeside();
  });
  let due = false;
  list.addEventListener("scroll", () => {
    if (!due) requestAnimationFrame(() => { due = false; draw(); });
    due = true;
  });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / rowHeight()) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || !found.length) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(found.length - 1, chosen + moves[event.key])));
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, select, textarea");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    $("query").focus();
  });

  $("unavailable").hidden = true;
  $("viewer").hidden = false;
  filter();
  performance.mark("traces ready");
  document.documentElement.dataset.traces = "ready";
})();
