// Shows the numbers of a token of a token map below the map, for the token that has the focus or is under the pointer.
// Without this script, the table below each map has the same numbers.
"use strict";
(() => {
  const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

  for (const map of document.querySelectorAll(".token-map")) {
    const tokens = Array.from(map.querySelectorAll(".token"));
    const rows = new Map(Array.from(map.querySelectorAll("tr[data-token]"), (row) => [row.dataset.token, row]));
    const numbers = map.querySelector(".numbers");

    const show = (token) => {
      const row = rows.get(token.dataset.token);
      const [text, position, divergence, student, teacher] = Array.from(row.cells, (cell) => cell.textContent);
      numbers.textContent =
        "Token " + position + ": " + text + " · divergence " + divergence + " nats · probability: student " + student + ", teacher " + teacher;
    };

    // Make a token the one that the Tab key reaches, and move the focus to it.
    const focus = (token) => {
      for (const each of tokens) each.tabIndex = each === token ? 0 : -1;
      token.focus();
    };

    map.addEventListener("keydown", (event) => {
      const place = tokens.indexOf(event.target);
      if (place < 0 || !(event.key in STEPS)) return;
      event.preventDefault();
      focus(tokens[Math.min(Math.max(place + STEPS[event.key], 0), tokens.length - 1)]);
    });
    for (const kind of ["focusin", "pointerover"])
      map.addEventListener(kind, (event) => {
        const token = event.target.closest(".token");
        if (token) show(token);
      });
    numbers.hidden = false;
  }
})();
