// Episodes as a list has them: what was said, and why it is there.

import { el, foreign, percent, time } from "./show.js";

const SHOWN_MAX = 600; // characters of each text in a list
const NAMES = { user_input: "User", agent_response: "Agent", observation: "Observation", action: "Action", result: "Result" };

// docs/search.md tells what each part is.
const PARTS = {
  own: ["its own words", "It has the words that were asked for, or words near to them in meaning."],
  asked: ["the question before it", "The turn before asks what was asked for, so this one need not repeat it."],
  before: ["what another said before it", "Another speaker says it just before."],
  after: ["what another said after it", "Another speaker says it just after."],
  before_own: ["what the same speaker said before", "The same speaker says it two turns before."],
  after_own: ["what the same speaker said after", "The same speaker says it two turns later."],
  around: ["what is said around it", "The turns on either side say what this one does not."],
  session: ["its session", "The best words of its session count for all of it."],
  date: ["its date", "It happened at or near a date in the query."],
  speaker: ["its speaker", "The query names who says it."],
  meaning: ["its meaning", "It is near in meaning, whatever the words."],
  time: ["that it tells when", "The query asks when or how long, and this tells."],
  telling: ["that it is small talk", "Words that are said often, or only asked, seldom answer anything."],
};

export const address = (agent, rest = "", query = {}) => {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  return `#/agents/${encodeURIComponent(agent)}${rest}${asked.size ? `?${asked}` : ""}`;
};

export const episodeAddress = (episode) => address(episode.agentId, `/episodes/${encodeURIComponent(episode.episodeId)}`);

export const title = (episode) => (episode.episodeType ? episode.episodeType[0].toUpperCase() + episode.episodeType.slice(1) : "Episode");

/** A list of episodes; `results` has a score and its parts where a search found them. */
export const list = (results, query = "", start = 1) =>
  el("ol", { class: "episodes", start }, results.map((result) => el("li", {}, item(result, query))));

function item({ episode, score, explanation }, query) {
  return el(
    "article",
    { class: "episode" },
    el(
      "p",
      { class: "line" },
      el("a", { href: episodeAddress(episode), "data-item": true }, foreign(title(episode)), ", ", time(episode.eventTime)),
      el("span", {}, episode.memoryType),
      el("span", {}, `relevance ${percent(episode.relevance)}`),
      episode.pinned ? el("span", {}, "pinned") : null,
    ),
    content(episode.content, { query, most: SHOWN_MAX }),
    score === undefined ? null : why(score, explanation ?? {}),
  );
}

/** What an episode says: text by its name, all else as JSON. */
export function content(its, { query = "", most = Infinity } = {}) {
  const names = Object.keys(its);
  if (!names.length) return el("p", { class: "wait" }, "Nothing is in it.");
  const isMarked = query ? wordsOf(query) : null;
  return el(
    "dl",
    { class: "content" },
    names.map((name) => {
      const text = typeof its[name] === "string" ? its[name] : JSON.stringify(its[name], null, 2);
      const shown = text.length > most ? `${text.slice(0, most)} …` : text;
      return el(
        "div",
        {},
        el("dt", {}, foreign(Object.hasOwn(NAMES, name) ? NAMES[name] : name)),
        el("dd", { dir: "auto", class: typeof its[name] === "string" ? null : "json" }, isMarked ? marked(shown, isMarked) : shown),
      );
    }),
  );
}

/** Text with the words of a query marked, as far as one sees it from their beginnings. */
function marked(text, isMarked) {
  return text.split(/([\p{L}\p{N}]+)/u).map((part, place) => (place % 2 && isMarked(part) ? el("mark", {}, part) : part));
}

function wordsOf(query) {
  const stem = (word) => word.toLowerCase().replace(/(?<=\p{L}{3})(ing|ed|es|e|s|y|ies)$/u, "");
  const stems = new Set((query.match(/[\p{L}\p{N}]+/gu) ?? []).map(stem));
  return (word) => stems.has(stem(word));
}

/** Why a search found it: the parts of its score, the largest first. */
function why(score, explanation) {
  const parts = Object.entries(explanation).filter(([, value]) => Math.abs(value) >= 0.0005);
  parts.sort(([, one], [, other]) => other - one);
  const name = (part) => (Object.hasOwn(PARTS, part) ? PARTS[part][0] : part);
  const largest = parts.slice(0, 2).map(([part, value]) => `${name(part)} (${percent(value / score)})`);
  return el(
    "details",
    { class: "why" },
    el("summary", {}, `Score ${score.toFixed(3)}`, largest.length ? `: ${largest.join(", ")}` : ""),
    el(
      "table",
      {},
      el("caption", {}, "What its score is made of"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Part"), el("th", { scope: "col", class: "number" }, "Adds"), el("th", { scope: "col" }, "Why"))),
      el(
        "tbody",
        {},
        parts.map(([part, value]) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, name(part)),
            el("td", { class: "number" }, value.toFixed(3)),
            el("td", {}, Object.hasOwn(PARTS, part) ? PARTS[part][1] : ""),
          ),
        ),
      ),
    ),
  );
}
