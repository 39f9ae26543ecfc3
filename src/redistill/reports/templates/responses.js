// Filters, sorts and steps through the responses of a page. Without this script, all of them can be read.
// The children of #answer-list are the prompts; their data attributes have the values to filter and to sort by.
"use strict";
(() => {
  const tools = document.getElementById("answer-tools");
  const list = document.getElementById("answer-list");
  if (!tools || !list) return;
  const field = (name) => document.getElementById("answer-" + name);
  const [text, dataset, category, key, order, count, more, all] = ["text", "dataset", "category", "key", "order", "count", "more", "all"].map(field);
  // Data attribute of a number, and the fields with the least and the largest value to show.
  const ranges = [["shown", "score"], ["length", "length"]].map(([name, id]) => [name, field(id + "-from"), field(id + "-to")]);
  const items = Array.from(list.children, (element, index) => ({ element, index, text: element.textContent.toLowerCase() }));
  const PAGE = 20; // prompts that are visible at first, and that a click adds
  let matching = items;
  let limit = PAGE;

  // The number to sort an item by; NaN if it has none.
  const number = (item) => parseFloat(item.element.dataset[key.value]);

  const compare = (a, b) => {
    const [left, right] = key.value === "" ? [a.index, b.index] : [number(a), number(b)];
    if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right) || a.index - b.index;
    return (key.value === "" ? 1 : Number(order.value)) * (left - right) || a.index - b.index;
  };

  // Hide the prompts that do not match, and those after the first `limit`.
  const show = () => {
    for (const item of items) item.element.classList.add("unmatched");
    matching.forEach((item, place) => {
      item.element.classList.remove("unmatched");
      item.element.classList.toggle("later", place >= limit);
    });
    more.hidden = all.hidden = matching.length <= limit;
    count.textContent = matching.length + " of " + items.length + " prompts match, " + Math.min(limit, matching.length) + " visible";
  };

  // Whether the number of an item lies in a range. An empty field is no limit; an item without the number is in no limited range.
  const inRange = (item, [name, from, to]) => {
    const [value, least, largest] = [item.element.dataset[name], from.value, to.value].map(parseFloat);
    return (Number.isNaN(least) || value >= least) && (Number.isNaN(largest) || value <= largest);
  };

  const update = () => {
    const wanted = text.value.trim().toLowerCase();
    const chosen = (choice, name, item) => !choice || choice.value === "" || item.element.dataset[name] === choice.value;
    const matches = (item) =>
      item.text.includes(wanted) &&
      chosen(dataset, "dataset", item) &&
      chosen(category, "category", item) &&
      ranges.every((range) => inRange(item, range));
    matching = items.filter(matches).sort(compare);
    list.append(...matching.map((item) => item.element));
    order.disabled = key.value === "";
    limit = PAGE;
    show();
  };

  // Close the open prompt, and open the next or the previous one.
  const step = (by) => {
    const open = matching.findIndex((item) => item.element.open);
    const place = open < 0 ? 0 : open + by;
    const next = matching[place];
    if (!next) return;
    limit = Math.max(limit, place + 1);
    show();
    for (const item of matching) item.element.open = item === next;
    next.element.scrollIntoView({ block: "nearest" });
  };

  // Move the focus from the summary of a prompt to that of the next or the previous one.
  const moveFocus = (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const now = matching.findIndex((item) => item.element.firstElementChild === event.target);
    const next = matching[now + by];
    if (by === undefined || now < 0 || !next) return;
    event.preventDefault();
    limit = Math.max(limit, now + by + 1);
    show();
    next.element.firstElementChild.focus();
  };

  // Open all visible prompts for printing, and close them again.
  const closed = [];
  const openAll = () => {
    for (const { element } of matching.slice(0, limit))
      if (element.open === false) {
        element.open = true;
        closed.push(element);
      }
  };
  const closeAgain = () => {
    for (const element of closed.splice(0)) element.open = false;
  };

  for (const input of [text, ...ranges.flatMap(([, from, to]) => [from, to])]) input.addEventListener("input", update);
  for (const choice of [dataset, category, key, order]) if (choice) choice.addEventListener("change", update);
  // Show prompts up to another limit, and move the focus to the first new one.
  const showUntil = (until) => {
    const next = matching[limit];
    limit = until;
    show();
    if (!next) return;
    next.element.tabIndex = -1;
    next.element.focus();
  };
  more.addEventListener("click", () => showUntil(limit + PAGE));
  all.addEventListener("click", () => showUntil(matching.length));
  for (const [name, by] of [["next", 1], ["previous", -1]]) field(name)?.addEventListener("click", () => step(by));
  list.addEventListener("keydown", moveFocus);
  window.addEventListener("beforeprint", openAll);
  window.addEventListener("afterprint", closeAgain);
  tools.hidden = false;
  update();
})();
