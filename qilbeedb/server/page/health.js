// How the server and its store are.

import { ask, askDurability, askHealth, needsLogin } from "./server.js";
import { bytes, duration, el, ended, facts, fill, number, refusal } from "./show.js";

const AGAIN_MS = 5000;

export function health(main, _, signal) {
  const place = el("div"), figures = el("div");
  const button = el("button", { type: "button", on: { click: () => fill(figures, "the figures", signal, () => stats(signal)).catch(ended) } }, "Show the figures");
  main.replaceChildren(
    el("h1", { tabindex: -1 }, "Health"), place,
    el("h2", {}, "Figures of the store"),
    el("p", { class: "wait" }, needsLogin ? "For administrators. " : "", button),
    figures,
  );
  return watch(place, signal);
}

async function watch(place, signal) {
  place.replaceChildren(el("p", { class: "wait" }, "Loading …"));
  while (!signal.aborted) {
    if (!document.hidden || place.firstChild?.className === "wait") {
      try {
        const [its, durability] = await Promise.all([askHealth(signal), askDurability(signal)]);
        if (!signal.aborted) place.replaceChildren(...told(its, durability));
      } catch (refused) {
        if (signal.aborted) return;
        if (refused.status === 401) throw refused;
        if (!place.querySelector(".refusal")) place.replaceChildren(refusal(refused));
      }
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

function told(its, durability) {
  const isWell = its.status === "healthy";
  return [
    el("p", { class: isWell ? "well" : "ill" }, isWell ? "Writes are taken, and become durable in time." : "Something is wrong:"),
    its.problems.length ? el("ul", {}, its.problems.map((problem) => el("li", {}, problem))) : null,
    facts([
      ["Server", `version ${its.version}, up for ${duration(Math.floor(its.uptime_seconds))}`],
      ["A power cut could take", !durability.tells ? "this engine does not tell" : durability.unsyncedAgeS ? `writes of the last ${duration(durability.unsyncedAgeS)}` : "nothing"],
      durability.pending === null ? null : ["To be indexed", number(durability.pending)],
    ]),
    el("p", { class: "wait" }, `Looked at ${new Date().toLocaleTimeString()}, and again every ${AGAIN_MS / 1000} seconds.`),
  ].filter(Boolean);
}

async function stats(signal) {
  const { store } = await ask("GET", "/admin/stats", { signal });
  const plain = Object.entries(store).filter(([, value]) => value === null || typeof value !== "object");
  const groups = Object.entries(store).filter(([, value]) => value !== null && typeof value === "object");
  return el("div", { class: "groups" }, [["store", Object.fromEntries(plain)], ...groups].map(([name, group]) =>
    el("table", { class: "figures" },
      el("caption", {}, words(name)),
      el("tbody", {}, Object.entries(group).map(([figure, value]) => el("tr", {}, el("th", { scope: "row" }, words(figure)), el("td", { class: typeof value === "number" ? "number" : null }, shown(figure, value))))))));
}

const words = (name) => name.replace(/_(ms|bytes)$/, "").replaceAll("_", " ");

function shown(name, value) {
  if (value === null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return typeof value === "string" ? value : JSON.stringify(value);
  if (/(^|_)bytes(_max)?$/.test(name)) return bytes(value);
  return name.endsWith("_ms") ? `${value.toLocaleString(undefined, { maximumFractionDigits: 1 })} ms` : number(value);
}
