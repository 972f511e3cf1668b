// Making elements. Whatever comes from the server becomes text: nothing here reads HTML.

/** An element with attributes, listeners (`on`) and children; children that are null are left out. */
export function el(name, attributes = {}, ...children) {
  return dress(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function dress(element, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

/**
 * A name that somebody else has chosen. It may run in either direction, and must not turn what stands around it; what
 * nobody sees in it (a character that turns the direction, say) is shown by its number, lest one name looks like another.
 */
export const foreign = (text) =>
  el("bdi", {}, text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (hidden) => `[U+${hidden.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`));

/** Say something to who does not see the page. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

// --- numbers and moments

const count = new Intl.NumberFormat();
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const second = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export const number = (value) => count.format(value);
export const plural = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;
export const percent = (share) => `${Math.round(share * 100)} %`;

export function bytes(value) {
  const unit = value < 1e3 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
  return `${(value / 1000 ** unit).toLocaleString(undefined, { maximumFractionDigits: unit ? 1 : 0 })} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

export function duration(seconds) {
  for (const [unit, length] of [["day", 86_400], ["hour", 3600], ["minute", 60]]) {
    if (seconds >= 2 * length) return plural(Math.floor(seconds / length), unit);
  }
  return seconds >= 1 || seconds === 0 ? plural(Math.round(seconds), "second") : `${Math.round(seconds * 1000)} ms`;
}

/** Seconds since 1970 as the reader's clock and calendar have it. */
export function time(seconds, form = moment) {
  if (seconds == null) return el("span", {}, "never");
  const date = new Date(seconds * 1000);
  return el("time", { datetime: date.toISOString(), title: date.toISOString() }, form.format(date));
}

/** The same, with its seconds. */
export const exactTime = (seconds) => time(seconds, second);

// --- what is the same everywhere

export const facts = (rows) =>
  el("dl", { class: "facts" }, rows.filter(Boolean).map(([name, ...values]) => el("div", {}, el("dt", {}, name), el("dd", {}, ...values))));

export const wait = (what) => el("p", { class: "wait" }, `Loading ${what} …`);

/** What was refused, in words, and what to do; with `again` a button that waits as long as the server asks to. */
export function refusal(refused, again) {
  if (!("status" in refused)) throw refused; // a mistake of ours
  const sentence = (text) => text && `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."} `;
  const isOurs = refused.status >= 500 && refused.requestId;
  return el(
    "div",
    { class: "refusal", role: "alert" },
    el("p", {}, el("strong", {}, sentence(refused.message)), sentence(refused.remedy)),
    isOurs && !refused.message.includes(refused.requestId) ? el("p", {}, `The log of the server has it as ${refused.requestId}.`) : null,
    again ? waiting(el("button", { type: "button", on: { click: again } }, "Try again"), refused.retryAfterS) : null,
  );
}

/** Disable a button for some seconds, or until `signal`, and say on it for how many more. */
export function waiting(button, seconds, signal = null) {
  if (!(seconds > 0)) return button;
  const text = button.textContent;
  const until = performance.now() + seconds * 1000;
  const tick = () => {
    const left = signal?.aborted ? 0 : Math.ceil((until - performance.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `${text} (in ${duration(left)})` : text;
    if (left > 0) timer = setTimeout(tick, 1000);
  };
  let timer;
  signal?.addEventListener("abort", () => (clearTimeout(timer), tick()));
  tick();
  return button;
}

/** Show what `load` gives in `place`, or what was refused; one that was stopped shows nothing. */
export async function fill(place, what, signal, load) {
  place.setAttribute("aria-busy", "true");
  place.replaceChildren(wait(what));
  try {
    const shown = await load();
    if (!signal.aborted) place.replaceChildren(...[shown].flat().filter(Boolean));
  } catch (refused) {
    if (signal.aborted) return;
    if (refused.status === 401) throw refused;
    place.replaceChildren(refusal(refused, () => fill(place, what, signal, load).catch(ended)));
  } finally {
    place.removeAttribute("aria-busy");
  }
}

/** Tell the page of a session that is over, from where nobody waits for a promise. */
export function ended(refused) {
  if (refused.status !== 401) throw refused;
  dispatchEvent(new Event("session-ended"));
}
