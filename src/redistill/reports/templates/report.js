// Filters and sorts the responses of a report. Without this script, all of them can be read.
"use strict";
(() => {
  const tools = document.getElementById("answer-tools");
  const list = document.getElementById("answer-list");
  if (!tools || !list) return;
  const field = (name) => document.getElementById("answer-" + name);
  const [text, dataset, category, key, order, count, more] = ["text", "dataset", "category", "key", "order", "count", "more"].map(field);
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

  // Hide the prompts that do not match, and on the screen also those after the first `limit`.
  const show = () => {
    for (const item of items) item.element.classList.add("unmatched");
    matching.forEach((item, place) => {
      item.element.classList.remove("unmatched");
      item.element.classList.toggle("later", place >= limit);
    });
    more.hidden = matching.length <= limit;
    count.textContent = matching.length + " of " + items.length + " prompts match, " + Math.min(limit, matching.length) + " visible";
  };

  const update = () => {
    const wanted = text.value.trim().toLowerCase();
    const chosen = (choice, name, item) => !choice || choice.value === "" || item.element.dataset[name] === choice.value;
    const matches = (item) => item.text.includes(wanted) && chosen(dataset, "dataset", item) && chosen(category, "category", item);
    matching = items.filter(matches).sort(compare);
    list.append(...matching.map((item) => item.element));
    order.disabled = key.value === "";
    limit = PAGE;
    show();
  };

  text.addEventListener("input", update);
  for (const choice of [dataset, category, key, order]) if (choice) choice.addEventListener("change", update);
  more.addEventListener("click", () => {
    const next = matching[limit];
    limit += PAGE;
    show();
    next.element.tabIndex = -1;
    next.element.focus();
  });
  tools.hidden = false;
  update();
})();
