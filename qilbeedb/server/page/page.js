// The page as a whole: which view an address has, who is logged in, and the keys.

import { agent } from "./agent.js";
import { agents } from "./agents.js";
import { episode } from "./episode.js";
import { health } from "./health.js";
import { askHealth, logIn, logOut, needsLogin, username } from "./server.js";
import { el, ended, foreign, refusal, waiting } from "./show.js";

const LOOK_AGAIN_MS = 30_000;
const main = document.getElementById("main");
let leaving = new AbortController();
let here = null; // the agent that is shown, and what shows other episodes of it
let isFirst = true;
let before = null; // the address from which this one was reached

// --- addresses

function parse(hash) {
  const [where, query = ""] = hash.replace(/^#/, "").split("?", 2);
  let parts;
  try {
    parts = where.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    return null;
  }
  const found = { agent: parts[1], id: parts[3], query: new URLSearchParams(query) };
  if (!parts.length) return { ...found, view: agents, title: "Agents" };
  if (parts[0] === "health" && parts.length === 1) return { ...found, view: health, title: "Health" };
  if (parts[0] !== "agents" || !parts[1]) return null;
  if (parts.length === 2) return { ...found, view: agent, title: parts[1] };
  return parts[2] === "episodes" && parts.length === 4 ? { ...found, view: episode, title: `Episode of ${parts[1]}` } : null;
}

/** Show what the address names. `opened` is the address that was left to go back to this one: its link has the focus. */
function show(opened = null) {
  const place = parse(location.hash);
  if (needsLogin && username() === null) return login();
  if (place?.view === agent && here?.agent === place.agent) return here.update(place.query);
  leaving.abort();
  leaving = new AbortController();
  here = null;
  document.getElementById("nav").hidden = false;
  document.title = `${place?.title ?? "Not found"} · QilbeeDB`;
  for (const link of document.querySelectorAll("#nav a")) {
    const isHere = link.getAttribute("href") === (place?.view === health ? "#/health" : place ? "#/" : "");
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!place) {
    main.replaceChildren(el("h1", { tabindex: -1 }, "Not found"), el("p", {}, "There is nothing at this address. ", el("a", { href: "#/" }, "All agents")));
  } else {
    const { signal } = leaving;
    let shown = place.view(main, place, signal);
    if (place.view === agent) {
      here = { agent: place.agent, update: shown.update };
      shown = shown.shown;
    }
    const link = () => opened && [...main.querySelectorAll("[data-item]")].find((item) => item.hash === opened);
    shown.then(() => !signal.aborted && link()?.focus()).catch(ended);
  }
  if (!isFirst) main.querySelector("h1")?.focus({ preventScroll: true });
  if (!isFirst) scrollTo(0, 0);
  isFirst = false;
}

// --- logging in and out

function login(why = "") {
  leaving.abort();
  here = null;
  document.title = "Log in · QilbeeDB";
  document.getElementById("nav").hidden = true;
  document.getElementById("who").hidden = true;
  const name = el("input", { id: "username", name: "username", autocomplete: "username", autocapitalize: "none", spellcheck: "false", required: true });
  const password = el("input", { id: "password", name: "password", type: "password", autocomplete: "current-password", required: true });
  const button = el("button", { type: "submit" }, "Log in");
  const said = el("div", { role: "alert" }, why ? el("p", { class: "notice" }, why) : null);
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    said.replaceChildren();
    try {
      await logIn(name.value, password.value);
    } catch (refused) {
      const told = refusal(refused);
      told.removeAttribute("role"); // that of what it stands in
      said.replaceChildren(told);
      button.disabled = false;
      password.select();
      // A lock that somebody must lift has no time to wait for.
      if (refused.status === 429 && !refused.remedy.includes("administrator")) {
        const another = new AbortController(); // it is this user who has to wait
        name.addEventListener("input", () => another.abort(), { once: true });
        waiting(button, refused.retryAfterS, another.signal);
      }
      return;
    }
    welcome();
    isFirst = false;
    show();
  };
  main.replaceChildren(
    el("h1", { tabindex: -1 }, "Log in"), said,
    el("form", { class: "login", method: "post", on: { submit } },
      el("p", { class: "field" }, el("label", { for: "username" }, "User"), name),
      el("p", { class: "field" }, el("label", { for: "password" }, "Password"), password),
      button),
    el("p", { class: "wait" }, "The page forgets you when it is closed or loaded anew."),
  );
  name.focus();
}

function welcome() {
  const who = document.getElementById("who");
  const out = async () => {
    await logOut();
    login("You are logged out.");
  };
  who.replaceChildren(
    ...(needsLogin
      ? [foreign(username()), el("button", { type: "button", class: "plain", on: { click: out } }, "Log out")]
      : [el("span", { title: "The server was started with insecure_no_login" }, "no login")]),
  );
  who.hidden = false;
}

// --- how the server is, beside the link

function tell(problem) {
  const state = document.getElementById("state");
  state.className = problem ? "ill" : "well";
  state.textContent = problem || "OK";
}

async function look() {
  for (;;) {
    if (!document.hidden) {
      try {
        const { status, version } = await askHealth();
        tell(status === "healthy" ? "" : "writes fail");
        document.getElementById("version").textContent = `QilbeeDB ${version}`;
      } catch (refused) {
        if (refused.status) tell("fails"); // where there was no answer, that is told already
      }
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
  }
}

// --- keys

const KEYS = [
  ["/", "go to the search", () => document.getElementById("search")],
  ["j", "next in the list", () => neighbour(1)],
  ["k", "one back in the list", () => neighbour(-1)],
  ["g", "all agents", () => void (location.hash = "#/")],
  ["h", "health", () => void (location.hash = "#/health")],
  ["u", "up: from an episode to its agent, from there to all", () => void [...main.querySelectorAll(".crumbs a")].at(-1)?.click()],
  ["r", "load this view anew", () => void ((here = null), show())],
  ["?", "these keys", () => void help()],
];
const OFF = "qilbeedb-keys-off"; // a habit of the reader's, no secret: kept in the browser
let keysAreOff = stored();

function stored() {
  try {
    return localStorage.getItem(OFF) !== null;
  } catch {
    return false; // where the browser keeps nothing
  }
}

function neighbour(step) {
  const items = [...main.querySelectorAll("[data-item]")];
  const at = items.indexOf(document.activeElement);
  return items[at < 0 ? (step > 0 ? 0 : items.length - 1) : Math.min(items.length - 1, Math.max(0, at + step))];
}

function help() {
  const off = el("input", { type: "checkbox", id: "keys-on", checked: !keysAreOff });
  off.addEventListener("change", () => {
    keysAreOff = !off.checked;
    try {
      if (keysAreOff) localStorage.setItem(OFF, "1");
      else localStorage.removeItem(OFF);
    } catch {
      // for as long as the page is open
    }
  });
  const dialog = el("dialog", { "aria-labelledby": "keys" },
    el("h2", { id: "keys" }, "Keys"),
    el("dl", { class: "keys" }, KEYS.map(([key, what]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)))),
    el("p", {}, el("label", {}, off, " Single keys do this")),
    el("form", { method: "dialog" }, el("button", { autofocus: true }, "Close")));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (keysAreOff || main.querySelector(".login") || document.querySelector("dialog")) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const found = KEYS.find(([key]) => key === event.key);
  if (!found) return;
  event.preventDefault();
  const target = found[2]();
  target?.focus();
  target?.select?.();
});

// --- the start

addEventListener("hashchange", ({ oldURL }) => {
  const old = oldURL ? new URL(oldURL).hash : null;
  show(location.hash === before ? old : null);
  before = old;
});
addEventListener("no-answer", () => tell("no answer"));
addEventListener("session-ended", () => {
  if (!main.querySelector(".login")) login("Your session has ended. Log in to go on where you were.");
});
document.getElementById("help").addEventListener("click", help);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
look();
if (!needsLogin) welcome();
show();
