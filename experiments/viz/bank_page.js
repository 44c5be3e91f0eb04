// Shows the records of a memory bank and the results of searches. All text is untrusted and becomes text nodes.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const records = data.records, at = (id) => document.getElementById(id);
  const byId = new Map(records.map((record) => [record.id, record]));
  const PAGE = 100;
  let shown = PAGE, selected = null;

  function element(tag, kind, text) {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);
  const minute = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
  const path = (names) => names.map((name) => name.replaceAll("/", "%2F")).join("/");
  const number = (value) => String(Number(value.toPrecision(3)));

  // State of a record at the time at which the page was written.
  function stateOf(record) {
    if (record.replaced_by.length) return "replaced";
    if (record.valid_to !== null && record.valid_to <= data.now) return "ended";
    if (record.valid_from !== null && record.valid_from > data.now) return "not yet valid";
    return "current";
  }
  const isPast = (record) => ["replaced", "ended"].includes(stateOf(record));

  at("title").textContent = data.title;
  for (const [name, value] of data.about) {
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", value));
    at("about").append(pair);
  }

  // Fills a select with [value, label] pairs. The first pair accepts every record.
  function fill(id, pairs) {
    for (const [value, label] of pairs) {
      const option = element("option", "", label);
      option.value = value;
      at(id).append(option);
    }
  }
  const tally = (values) => {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    return [...counts].sort((a, b) => (a[0] < b[0] ? -1 : 1)).map(([value, count]) => [value, `${value} (${count})`]);
  };
  // A namespace includes the namespaces below it.
  const levels = (record) => record.namespace.map((_, place) => path(record.namespace.slice(0, place + 1)));
  fill("state", [["", "all"], ...tally(records.map(stateOf))]);
  fill("kind", [["", "all"], ...tally(records.map((record) => record.kind))]);
  fill("namespace", [["", "all"], ...tally(records.flatMap(levels))]);
  fill("author", [["", "all"], ...tally(records.map((record) => record.trust))]);
  const orders = {
    "newest first": (a, b) => b.renewed - a.renewed,
    "oldest first": (a, b) => a.renewed - b.renewed,
    "most important first": (a, b) => b.importance - a.importance,
  };
  fill("order", Object.keys(orders).map((name) => [name, name]));

  const searchTexts = new Map(records.map((record) => [record, [
    record.text, ...record.sayings, ...record.history.map((one) => one.text),
  ].join("\n").toLowerCase()]));

  function matches(record) {
    const words = at("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const { value: state } = at("state"), { value: kind } = at("kind"), { value: author } = at("author");
    const { value: namespace } = at("namespace"), { value: since } = at("since"), { value: until } = at("until");
    const has = (word) => searchTexts.get(record).includes(word) || (word.length > 3 && record.id.startsWith(word));
    return words.every(has)
      && (!state || stateOf(record) === state) && (!kind || record.kind === kind)
      && (!author || record.trust === author) && (!namespace || levels(record).includes(namespace))
      && (!since || day(record.observed) >= since) && (!until || day(record.observed) <= until);
  }

  // Button that selects a record, with its text and a note.
  function entry(record, note) {
    const button = element("button", "entry" + (isPast(record) ? " past" : ""));
    button.type = "button";
    button.dataset.id = record.id;
    button.append(element("span", "text", record.text), element("span", "note", note));
    button.addEventListener("click", () => select(record));
    return button;
  }
  const summary = (record) => [
    day(record.observed), record.kind, record.namespace.length ? path(record.namespace) : "", record.trust,
    stateOf(record),
  ].filter(Boolean).join(" · ");

  function list() {
    const found = records.filter(matches).sort(orders[at("order").value]);
    at("count").textContent = `${found.length.toLocaleString("en")} of ${records.length.toLocaleString("en")} records`;
    at("records").replaceChildren(...found.slice(0, shown).map((record) => {
      const item = element("li");
      item.append(entry(record, summary(record)));
      return item;
    }));
    at("more").hidden = found.length <= shown;
    mark();
  }

  function mark() {
    for (const button of document.querySelectorAll(".entry"))
      button.classList.toggle("selected", selected !== null && button.dataset.id === selected.id);
  }

  function table(rows) {
    const table = element("table");
    for (const [name, value] of rows) {
      const row = element("tr");
      row.append(element("th", "", name), element("td", "", value));
      table.append(row);
    }
    return table;
  }

  // Records that this one replaced and that replaced it, oldest first. A damaged file may have a circle.
  function succession(record) {
    const found = new Set([record]), waiting = [record];
    while (waiting.length) {
      const one = waiting.pop();
      for (const id of [one.supersedes, ...one.replaced_by]) {
        const other = byId.get(id);
        if (other && !found.has(other)) { found.add(other); waiting.push(other); }
      }
    }
    return [...found].sort((a, b) => a.observed - b.observed);
  }

  function select(record) {
    selected = record;
    const box = at("record"), time = (value) => (value === null ? "" : minute(value) + " UTC");
    const rows = [
      ["id", record.id], ["state", stateOf(record)], ["kind", record.kind], ["namespace", path(record.namespace)],
      ["author", record.trust], ["observed", time(record.observed)],
      ["last statement", record.renewed === record.observed ? "" : time(record.renewed)],
      ["written", time(record.created)], ["valid from", time(record.valid_from)],
      ["valid until", time(record.valid_to)], ["deleted after", time(record.expires)],
      ["importance", number(record.importance)],
      ...Object.entries(record.provenance),
    ];
    box.replaceChildren(element("p", "text", record.text), table(rows.filter(([, value]) => value !== "")));
    if (record.history.length) {
      box.append(element("h2", "", "Earlier texts"));
      box.append(table(record.history.map((one) => [`until ${minute(one.end)}`, one.text])));
    }
    if (record.sayings.length) {
      box.append(element("h2", "", "Other wordings"));
      box.append(table(record.sayings.map((text, place) => [String(place + 1), text])));
    }
    const chain = succession(record);
    if (chain.length > 1) {
      box.append(element("h2", "", "Values of this fact, oldest first"));
      box.append(...chain.map((one) => entry(one, summary(one))));
    }
    const asked = data.queries.filter((query) => query.hits.some((hit) => hit.id === record.id));
    if (asked.length) {
      box.append(element("h2", "", "Found by"));
      box.append(table(asked.map((query) =>
        [`rank ${query.hits.findIndex((hit) => hit.id === record.id) + 1}`, query.text])));
    }
    mark();
  }

  const PARTS = [
    ["words", "words", (why) => why.from_words],
    ["embeddings", "meaning", (why) => why.from_embeddings],
    ["neighbours", "adjacent turns", (why) => why.from_neighbours],
    ["rest", "recency and importance", (why) => why.recency + why.importance],
  ];

  function ask(query) {
    const best = Math.max(...query.hits.map((hit) => hit.score), 1e-9);
    at("key").replaceChildren();
    if (!query.hits.length) at("key").textContent = "No record was found.";
    else for (const [kind, name] of PARTS) at("key").append(element("span", "swatch " + kind), name);
    at("hits").replaceChildren(...query.hits.map((hit, place) => {
      const record = byId.get(hit.id), why = hit.explanation, item = element("li");
      const newer = query.hits.findIndex((other) => other.id === hit.superseded_by);
      const parts = PARTS.filter(([, , value]) => value(why)).map(([, name, value]) => `${name} ${number(value(why))}`);
      const relevance = hit.relevance === null ? "" : `, relevance ${number(hit.relevance)}`;
      const button = entry(record, [
        `${place + 1}. score ${number(hit.score)}${relevance}: ${parts.join(", ") || "none"}`,
        ...(newer < 0 ? [] : [`outdated: result ${newer + 1} is newer`]),
      ].join(" · "));
      const bar = element("span", "parts");
      for (const [kind, , value] of PARTS) {
        const part = element("span", "part " + kind);
        part.style.width = 100 * Math.max(value(why), 0) / best + "%";
        bar.append(part);
      }
      button.append(bar);
      item.append(button);
      return item;
    }));
    mark();
  }

  for (const id of ["words", "state", "kind", "namespace", "author", "since", "until", "order"])
    at(id).addEventListener("input", () => { shown = PAGE; list(); });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("more").addEventListener("click", () => { shown += PAGE; list(); });
  if (data.queries.length) {
    at("questions").hidden = false;
    fill("question", data.queries.map((query, place) => [String(place), query.text]));
    at("question").addEventListener("input", () => ask(data.queries[at("question").value]));
    ask(data.queries[0]);
  }
  list();
  if (records.length) select(data.queries.length && data.queries[0].hits.length
    ? byId.get(data.queries[0].hits[0].id) : records.filter(matches).sort(orders["newest first"])[0]);
})();
