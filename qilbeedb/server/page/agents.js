// All agents, with the figures of their memories.

import { address } from "./episodes.js";
import { ask, path } from "./server.js";
import { bytes, el, ended, fill, foreign, number, percent, plural, say, time } from "./show.js";

const ROWS = 50; // so many are shown, and asked for their figures, at once
const AT_ONCE = 4;

export function agents(main, _, signal) {
  const place = el("div");
  main.replaceChildren(el("h1", { tabindex: -1 }, "Agents"), place);
  return fill(place, "the agents", signal, async () => {
    const { agents: all } = await ask("GET", "/agents", { signal });
    if (!all.length) {
      return el("p", { class: "empty" }, "No agent has stored anything yet, or none that you may see. ", el("a", { href: "/docs" }, "How to store an episode"));
    }
    return found(all, signal);
  });
}

function found(all, signal) {
  let shown = ROWS;
  const body = el("tbody");
  const more = el("button", { type: "button", on: { click: () => ((shown += ROWS), show()) } }, "Show more");
  const told = el("p", { class: "wait" });
  const filter = el("input", { id: "search", type: "search", autocomplete: "off", spellcheck: "false", on: { input: () => ((shown = ROWS), show()) } });
  const rows = new Map(); // made once: their figures are asked for once

  function show() {
    const text = filter.value.trim().toLowerCase().normalize("NFC");
    const fits = all.filter((agent) => agent.toLowerCase().includes(text));
    const some = fits.slice(0, shown);
    const fresh = some.filter((agent) => !rows.has(agent));
    for (const agent of fresh) rows.set(agent, row(agent));
    body.replaceChildren(...some.map((agent) => rows.get(agent)));
    more.hidden = fits.length <= shown;
    told.textContent = some.length === fits.length ? plural(fits.length, "agent") : `${number(some.length)} of ${plural(fits.length, "agent")}`;
    say(told.textContent);
    ask_figures(fresh).catch(ended);
  }

  async function ask_figures(queue) {
    await Promise.all(Array.from({ length: AT_ONCE }, async () => {
      while (queue.length && !signal.aborted) {
        const agent = queue.shift();
        try {
          figures(rows.get(agent), await ask("GET", path`/memory/${agent}/statistics`, { signal }));
        } catch (refused) {
          if (signal.aborted) return;
          if (refused.status === 401) throw refused;
          rows.get(agent).lastChild.replaceChildren(`not known: ${refused.message}`);
        }
      }
    }));
  }

  show();
  return [
    el("p", { class: "field" }, el("label", { for: "search" }, "Find an agent"), filter),
    el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Agents" },
      el("table", { class: "agents" },
        el("caption", { class: "unseen" }, "Agents and their memories"),
        el("thead", {}, el("tr", {}, ["Agent", "Episodes", "Newest", "Oldest", "Average relevance", "Size"].map((name) =>
          el("th", { scope: "col", class: ["Episodes", "Average relevance", "Size"].includes(name) ? "number" : null }, name)))),
        body)),
    told,
    more,
  ];
}

const row = (agent) =>
  el("tr", {}, el("th", { scope: "row" }, el("a", { href: address(agent), "data-item": true }, foreign(agent))), el("td", { colspan: 5, class: "wait" }, "…"));

function figures(its, statistics) {
  const right = (text) => el("td", { class: "number" }, text);
  its.lastChild.replaceWith(
    right(number(statistics.totalEpisodes)),
    el("td", {}, time(statistics.newestEpisode)),
    el("td", {}, time(statistics.oldestEpisode)),
    right(statistics.totalEpisodes ? percent(statistics.avgRelevance) : "–"),
    right(bytes(statistics.bytes)),
  );
}
