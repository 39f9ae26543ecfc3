// Filters, sorts and steps through the responses of a comparison. Without this script, all of them can be read.
"use strict";
(() => {
  const tools = document.getElementById("response-tools");
  const list = document.getElementById("response-list");
  if (!tools || !list) return;
  const field = (name) => document.getElementById("response-" + name);
  const [text, dataset, key, order, count, more] = ["text", "dataset", "key", "order", "count", "more"].map(field);
  const items = Array.from(list.children, (element, index) => ({
    element,
    index,
    text: element.textContent.toLowerCase(),
    numbers: { disagreement: element.dataset.disagreement, average: element.dataset.average },
    scores: element.dataset.scores.split(" "),
  }));
  const PAGE = 25; // prompts that are visible at first, and that a click adds
  let shown = items;
  let limit = PAGE;

  // The number to sort an item by; NaN if it has none.
  const number = (item) => parseFloat(key.value in item.numbers ? item.numbers[key.value] : item.scores[Number(key.value)]);

  const compare = (a, b) => {
    if (key.value === "order") return a.index - b.index;
    const [left, right] = [number(a), number(b)];
    if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right) || a.index - b.index;
    return Number(order.value) * (left - right) || a.index - b.index;
  };

  // Hide the prompts that do not match, and those after the first `limit`.
  const show = () => {
    const visible = new Set(shown.slice(0, limit));
    for (const item of items) item.element.hidden = !visible.has(item);
    more.hidden = shown.length <= limit;
    count.textContent = shown.length + " of " + items.length + " prompts match, " + visible.size + " visible";
  };

  const update = () => {
    const wanted = text.value.trim().toLowerCase();
    const matches = (item) =>
      item.text.includes(wanted) && (!dataset || dataset.value === "" || item.element.dataset.dataset === dataset.value);
    shown = items.filter(matches).sort(compare);
    list.append(...shown.map((item) => item.element));
    order.disabled = key.value === "order";
    limit = PAGE;
    show();
  };

  // Close the open prompt and open the next or the previous one.
  const step = (by) => {
    const open = shown.findIndex((item) => item.element.open);
    const place = open < 0 ? 0 : open + by;
    const next = shown[place];
    if (!next) return;
    limit = Math.max(limit, place + 1);
    show();
    for (const item of shown) item.element.open = item === next;
    next.element.scrollIntoView({ block: "nearest" });
  };

  const moveFocus = (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const now = shown.findIndex((item) => item.element.firstElementChild === event.target);
    const next = shown[now + by];
    if (by === undefined || now < 0 || !next) return;
    event.preventDefault();
    limit = Math.max(limit, now + by + 1);
    show();
    next.element.firstElementChild.focus();
  };

  text.addEventListener("input", update);
  for (const choice of [dataset, key, order]) if (choice) choice.addEventListener("change", update);
  field("next").addEventListener("click", () => step(1));
  field("previous").addEventListener("click", () => step(-1));
  more.addEventListener("click", () => {
    limit += PAGE;
    show();
  });
  list.addEventListener("keydown", moveFocus);
  tools.hidden = false;
  update();
})();
