// One episode: what it says, whether it would survive a power cut, what it was before, and what is like it.

import { address, content, list, title } from "./episodes.js";
import { allResults, ask, askDurability, path } from "./server.js";
import { duration, el, ended, exactTime, facts, fill, foreign, percent, say, time } from "./show.js";

const AGAIN_MS = 1000;

export function episode(main, { agent, id }, signal) {
  const place = el("div");
  const heading = el("h1", { tabindex: -1 }, "Episode");
  main.replaceChildren(
    el("nav", { "aria-label": "Where this is", class: "crumbs" }, el("a", { href: "#/" }, "Agents"), " / ", el("a", { href: address(agent) }, foreign(agent))),
    heading, place,
  );
  return fill(place, "the episode", signal, async () => {
    const [{ episodes: [its] }, { episodes: history }] = await Promise.all([
      ask("POST", path`/memory/${agent}/episodes/get`, { body: { ids: [id] }, signal }),
      ask("GET", path`/memory/${agent}/episodes/${id}/history`, { signal }),
    ]);
    if (its) heading.replaceChildren(foreign(title(its)), ", ", time(its.eventTime));
    return its ? present(agent, id, its, history, signal) : past(agent, history);
  });
}

function present(agent, id, its, history, signal) {
  const durable = el("span", { role: "status" }, "…");
  watch(durable, its.transactionTime, signal).catch(ended);
  const similar = el("div");
  const find = el("button", { type: "button", on: { click: () => fill(similar, "what is like it", signal, () => like(agent, id, signal)).catch(ended) } }, "Find episodes like this one");
  return [
    content(its.content),
    facts([
      ["Happened", time(its.eventTime)],
      ["Stored", time(its.transactionTime)],
      ["Durability", durable],
      ["Relevance", percent(its.relevance), its.pinned ? ", pinned" : ""],
      ["Memory", its.memoryType],
      ["Type", foreign(its.episodeType)],
      ["Expires", its.expiresAt ? time(its.expiresAt) : "never"],
      ["Id", el("code", {}, id)],
    ]),
    el("h2", {}, "Metadata"),
    Object.keys(its.metadata).length ? content(its.metadata) : el("p", { class: "empty" }, "It has none."),
    versions(agent, [...history, its]),
    el("h2", {}, "Like this one"),
    find,
    similar,
    el("details", {}, el("summary", {}, "As JSON"), el("pre", { tabindex: 0 }, JSON.stringify(its, null, 2))),
  ];
}

function past(agent, history) {
  const last = history.at(-1);
  if (!last) return el("p", { class: "empty" }, "There is no such episode: it was deleted, it was forgotten, or it was never there.");
  const next = last.supersededBy;
  return [
    el("p", { class: "notice" }, "This episode is not current any more: it was retired ", time(last.endedAt), next ? [" in favour of ", el("a", { href: address(agent, `/episodes/${encodeURIComponent(next)}`) }, "this one")] : "", "."),
    versions(agent, history),
  ];
}

/** All versions, the newest first, each with what it changed in the one before. */
function versions(agent, all) {
  const names = { content: "content", metadata: "metadata", episodeType: "type" };
  const changed = (its, before) => Object.keys(names).filter((name) => JSON.stringify(its[name]) !== JSON.stringify(before?.[name]));
  return el("section", { "aria-labelledby": "history" },
    el("h2", { id: "history" }, "History"),
    all.length === 1 && !all[0].endedAt ? el("p", { class: "empty" }, "It has not been changed since it was stored.") : el("ol", { class: "history", reversed: true },
      all.map((its, place) => {
        const fresh = changed(its, all[place - 1]);
        return el("li", {},
          el("p", { class: "line" },
            el("strong", {}, its.endedAt ? "Then" : "Now"), el("span", {}, its.endedAt ? "" : "since ", exactTime(its.transactionTime), its.endedAt ? [" to ", exactTime(its.endedAt)] : ""),
            el("span", {}, place ? `changed: ${fresh.map((name) => names[name]).join(", ") || "nothing that is shown"}` : "as it was first stored")),
          fresh.includes("episodeType") && place ? el("p", { class: "line" }, "Type: ", foreign(its.episodeType)) : null,
          fresh.includes("content") ? content(its.content) : null,
          fresh.includes("metadata") && (place || Object.keys(its.metadata).length) ? [el("p", { class: "wait" }, "Metadata"), content(its.metadata)] : null);
      }).reverse()));
}

/** Tell whether it would survive a power cut; until it would, ask again. */
async function watch(place, storedS, signal) {
  while (!signal.aborted) {
    let its;
    try {
      its = await askDurability(signal);
    } catch (refused) {
      if (signal.aborted) return;
      if (refused.status === 401) throw refused;
      place.textContent = `not known: ${refused.message}`;
      return;
    }
    const ageS = its.unsyncedAgeS;
    if (!its.tells) {
      place.textContent = "this engine does not tell what survives a power cut";
      return;
    }
    if (ageS === 0 || (its.nowS !== null && storedS < its.nowS - 1 - ageS)) { // the clock of the answer has whole seconds
      place.textContent = "survives a power cut";
      return;
    }
    place.textContent = `not certain yet: the oldest write that a power cut could take is ${duration(ageS)} old`;
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

async function like(agent, id, signal) {
  const answer = await ask("GET", path`/memory/${agent}/episodes/${id}/similar`, { query: { limit: 10, explain: "true" }, signal });
  const results = await allResults(agent, answer, { signal });
  say(`${results.length} found`);
  return results.length ? list(results) : el("p", { class: "empty" }, "Nothing is like it.");
}
