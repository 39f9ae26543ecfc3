"""From a file or the hub to token ids: `reader` -> `templates` -> `tokenize`; `tasks` are known data sets, `toy` is made up."""
