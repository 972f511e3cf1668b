// One agent: its figures, its episodes over time, and those that are looked for.

import { chart, counted } from "./chart.js";
import { address, list } from "./episodes.js";
import { allResults, ask, path } from "./server.js";
import { bytes, el, ended, facts, fill, foreign, number, percent, plural, refusal, say, time } from "./show.js";

const PAGE = 20;
const FOUND_MAX = 50;
const COUNTED = 2000; // episodes that are counted at once for the picture, in pages of
const COUNTED_PAGE = 500;

const MODES = {
  hybrid: ["Hybrid", "words and meaning"],
  keyword: ["Keyword", "words"],
  semantic: ["Semantic", "meaning"],
};

/** Shows the agent. `update` shows other episodes of it without all else being loaded again. */
export function agent(main, { agent: id, query }, signal) {
  const figures = el("div"), overTime = el("section", { "aria-labelledby": "over-time", class: "over-time" });
  const episodes = el("section", { "aria-labelledby": "found", class: "found" });
  const form = el("form", { role: "search", class: "search" }), types = el("datalist", { id: "types" });
  main.replaceChildren(
    el("nav", { "aria-label": "Where this is", class: "crumbs" }, el("a", { href: "#/" }, "Agents")),
    el("h1", { tabindex: -1 }, foreign(id)), figures, types, form, overTime, episodes,
  );
  fill(figures, "its figures", signal, () => showFigures(id, types, signal)).catch(ended);
  showOverTime(overTime, id, signal).catch(ended);
  let controller = null;
  const update = (asked) => {
    controller?.abort();
    controller = new AbortController();
    showForm(form, id, asked);
    overTime.hidden = Boolean(asked.get("q")?.trim());
    return showFound(episodes, id, asked, AbortSignal.any([signal, controller.signal])).catch(ended);
  };
  return { update, shown: update(query) };
}

async function showFigures(id, types, signal) {
  const [its, search] = await Promise.all([
    ask("GET", path`/memory/${id}/statistics`, { signal }),
    ask("GET", path`/memory/${id}/semantic-search/status`, { signal }),
  ]);
  const byType = Object.entries(its.episodesByType).sort(([, one], [, other]) => other - one);
  types.replaceChildren(...byType.map(([value]) => el("option", { value })));
  const waiting = search.pendingEpisodes ? `, ${plural(search.pendingEpisodes, "episode")} to index` : "";
  const vectors = search.vectorsPending ? `, ${number(search.vectorsPending)} without a vector` : "";
  return facts([
    ["Episodes", number(its.totalEpisodes)],
    ["Types", ...byType.flatMap(([type, count], place) => [place ? ", " : "", foreign(type), ` ${number(count)}`])],
    ["Newest", time(its.newestEpisode)],
    ["Oldest", time(its.oldestEpisode)],
    ["Average relevance", its.totalEpisodes ? percent(its.avgRelevance) : "–"],
    ["Size", bytes(its.bytes)],
    ["Search", search.enabled ? `${number(search.indexedEpisodes)} indexed${waiting}${vectors}` : "switched off on this server"],
    search.embedderProblem ? ["Embedder", search.embedderProblem] : null,
  ]);
}

// --- over time

async function showOverTime(section, id, signal) {
  const all = [];
  let cursor = null;
  const place = el("div");
  section.replaceChildren(el("h2", { id: "over-time" }, "Over time"), place);
  const more = async () => {
    const until = all.length + COUNTED;
    do {
      const answer = await ask("GET", path`/memory/${id}/episodes`, { query: { reverse: "true", limit: COUNTED_PAGE, cursor: cursor ?? "" }, signal });
      for (const { eventTime, episodeType, relevance } of answer.episodes) all.push({ at: eventTime, type: episodeType, relevance });
      cursor = answer.nextCursor;
    } while (cursor && all.length < until);
    if (!all.length) return el("p", { class: "empty" }, "There is nothing to count yet.");
    return [
      ...chart(counted(all), (row) => address(id, "", { from: local(row.from), to: local(row.to) })),
      cursor ? el("p", { class: "wait" }, `The newest ${number(all.length)} are counted. `, el("button", { type: "button", on: { click: count } }, "Count further back")) : null,
    ];
  };
  const count = () => fill(place, "what happened when", signal, more).catch(ended);
  await fill(place, "what happened when", signal, more);
}

// --- what is looked for

function showForm(form, id, asked) {
  const mode = modeOf(asked);
  const field = (label, input) => el("p", { class: "field" }, el("label", { for: input.id }, label), input);
  const option = (value, text) => el("option", { value, selected: asked.get("kind") === value }, text);
  const text = form.elements.q ?? el("input", { id: "search", name: "q", type: "search", autocomplete: "off", spellcheck: "false" });
  text.value = asked.get("q") ?? "";
  const hasFilters = ["type", "kind", "from", "to", "asOf"].some((name) => asked.get(name));
  const moment = (name) => el("input", { id: name, name, type: "datetime-local", value: asked.get(name) ?? "" });
  const parts = [
    el("fieldset", { class: "modes" }, el("legend", { class: "unseen" }, "Search by"),
      Object.entries(MODES).map(([value, [name, what]]) => el("label", { title: what }, el("input", { type: "radio", name: "mode", value, checked: mode === value }), name))),
    el("details", { open: hasFilters }, el("summary", {}, "Filters"),
      el("div", { class: "filters" },
        field("Type", el("input", { id: "type", name: "type", list: "types", value: asked.get("type") ?? "", autocomplete: "off", spellcheck: "false" })),
        field("Memory", el("select", { id: "kind", name: "kind" }, option("", "all"), ["episodic", "semantic", "procedural", "factual"].map((kind) => option(kind, kind)))),
        field("From", moment("from")), field("Before", moment("to")), field("As it was known at", moment("asOf"))),),
  ];
  if (form.firstChild) {
    form.lastChild.replaceWith(el("div", { class: "how" }, ...parts));
    return;
  }
  form.append(field("Search its episodes", text), el("button", { type: "submit" }, "Search"), el("div", { class: "how" }, ...parts));
  const go = () => {
    const given = new FormData(form);
    const names = ["q", "mode", "type", "kind", "from", "to", "asOf"];
    const to = address(id, "", Object.fromEntries(names.map((name) => [name, given.get(name)])));
    if (location.hash === to) dispatchEvent(new HashChangeEvent("hashchange"));
    else location.hash = to;
  };
  form.addEventListener("submit", (event) => (event.preventDefault(), go()));
  form.addEventListener("change", (event) => {
    if (event.target.name === "mode" && text.value.trim()) go();
  });
}

const modeOf = (asked) => (Object.hasOwn(MODES, asked.get("mode")) ? asked.get("mode") : "hybrid");

async function showFound(section, id, asked, signal) {
  const query = (asked.get("q") ?? "").trim(), mode = modeOf(asked);
  const narrowed = ["type", "kind", "from", "to", "asOf"].some((name) => asked.get(name));
  const place = el("div", { class: "results" });
  const heading = el("h2", { id: "found" }, query ? "Found" : narrowed ? "Episodes" : "Newest episodes");
  const clear = query || narrowed ? el("a", { href: address(id) }, "Show the newest instead") : null;
  section.replaceChildren(el("div", { class: "line" }, heading, clear), place);
  if (!query) {
    await fill(place, "episodes", signal, () => browse(id, asked, signal));
    return;
  }
  await fill(place, "what fits", signal, async () => {
    const results = await search(id, query, mode, asked, signal);
    say(plural(results.length, "result"));
    if (!results.length) return el("p", { class: "empty" }, `Nothing fits by ${MODES[mode][1]}. Try other words, another way to search, or fewer filters.`);
    const most = results.length === FOUND_MAX ? `The best ${FOUND_MAX}, best first.` : `${plural(results.length, "result")}, best first.`;
    return [el("p", { class: "wait" }, most), list(results, mode === "semantic" ? "" : query)];
  });
}

const ROUTES = { keyword: "search", semantic: "semantic-search", hybrid: "hybrid-search" };

async function search(id, query, mode, asked, signal) {
  const body = { query, limit: FOUND_MAX, explain: true, episodeType: typeOf(asked), ...filters(asked) };
  const answer = await ask("POST", path`/memory/${id}/episodes/${ROUTES[mode]}`, { body, signal });
  return allResults(id, answer, { asOf: body.asOf, signal });
}

const typeOf = (asked) => asked.get("type")?.trim() || undefined;
const filters = (asked) => ({ memoryType: asked.get("kind") || undefined, start: seconds(asked.get("from")), end: seconds(asked.get("to")), asOf: seconds(asked.get("asOf")) });

/** Episodes from the newest back, a page at a press of a button. */
async function browse(id, asked, signal) {
  const next = pages(id, asked, signal);
  const first = await next();
  if (!first.episodes.length && !first.more) {
    const narrowed = [...asked].some(([name, value]) => name !== "mode" && value);
    return el("p", { class: "empty" }, narrowed ? "No episode fits these filters." : "This agent remembers nothing yet.");
  }
  const lists = el("div", {}, list(wrap(first.episodes)));
  let shown = first.episodes.length;
  const told = el("p", { class: "wait" });
  const button = el("button", { type: "button" }, "Show older episodes");
  const tell = (more) => {
    button.hidden = !more;
    told.textContent = more ? `${number(shown)} are shown.` : `${plural(shown, "episode")}, there are no older ones.`;
    say(told.textContent);
  };
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const page = await next();
      const added = list(wrap(page.episodes), "", shown + 1);
      lists.append(added);
      shown += page.episodes.length;
      tell(page.more);
      added.querySelector("[data-item]")?.focus();
      told.nextSibling?.classList?.contains("refusal") && told.nextSibling.remove();
    } catch (refused) {
      if (signal.aborted) return;
      if (refused.status === 401) ended(refused);
      else if (!told.nextSibling?.classList?.contains("refusal")) told.after(refusal(refused));
    } finally {
      button.disabled = false;
    }
  });
  tell(first.more);
  return [lists, button, told];
}

const wrap = (episodes) => episodes.map((episode) => ({ episode }));

/** What gives the next page. */
function pages(id, asked, signal) {
  let before;
  return async () => {
    const query = { limit: PAGE, before, type: typeOf(asked), ...filters(asked) };
    const { episodes, nextCursor } = await ask("GET", path`/memory/${id}/episodes/recent`, { query, signal });
    before = nextCursor;
    return { episodes, more: nextCursor !== null };
  };
}

/** A moment as a field for date and time has it, in the reader's zone. */
function local(at) {
  const date = new Date(at * 1000);
  const two = (value) => String(value).padStart(2, "0");
  const day = `${String(date.getFullYear()).padStart(4, "0")}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day}T${two(date.getHours())}:${two(date.getMinutes())}`;
}

function seconds(text) {
  const ms = text ? new Date(text).getTime() : NaN;
  return Number.isNaN(ms) ? undefined : ms / 1000;
}
