// Figures over time: how many episodes each hour, day, week, month or year has.

import { el, number, percent, svg } from "./show.js";

const HOUR_S = 3600, DAY_S = 86_400, YEAR_S = 365.25 * DAY_S;
const BARS_MAX = 130;
const WIDTH = 720, HEIGHT = 120;
const KINDS = 5; // so many types have a shade of their own, the rest share the last

/** The moments between which episodes are counted together: the unit fits the time that they span. */
export function periods(firstS, lastS) {
  const span = lastS - firstS;
  const lengths = { hour: HOUR_S, day: DAY_S, week: 7 * DAY_S, month: YEAR_S / 12, year: 0 };
  const unit = Object.keys(lengths).find((name) => !lengths[name] || span / lengths[name] <= BARS_MAX - 2);
  const years = Math.ceil(span / YEAR_S / (BARS_MAX - 2)) || 1;
  const at = new Date(firstS * 1000);
  at.setMinutes(0, 0, 0);
  if (unit !== "hour") at.setHours(0);
  if (unit === "week") at.setDate(at.getDate() - ((at.getDay() + 6) % 7)); // Mondays
  if (unit === "month" || unit === "year") at.setDate(1);
  if (unit === "year") at.setMonth(0);
  const starts = [];
  for (;;) {
    starts.push(at.getTime() / 1000);
    if (starts.at(-1) > lastS) return { unit, starts };
    if (unit === "hour") at.setTime(at.getTime() + HOUR_S * 1000); // across a change of the clock too
    else if (unit === "day") at.setDate(at.getDate() + 1);
    else if (unit === "week") at.setDate(at.getDate() + 7);
    else if (unit === "month") at.setMonth(at.getMonth() + 1);
    else at.setFullYear(at.getFullYear() + years);
  }
}

const FORMS = {
  hour: { month: "short", day: "numeric", hour: "numeric" },
  day: { year: "numeric", month: "short", day: "numeric" },
  week: { year: "numeric", month: "short", day: "numeric" },
  month: { year: "numeric", month: "long" },
  year: { year: "numeric" },
};

/** Counts of episodes by period and type: `{unit, types, rows: [{from, to, name, count, byType, relevance}]}`. */
export function counted(episodes) {
  const { unit, starts } = periods(episodes.reduce((least, { at }) => Math.min(least, at), Infinity), episodes.reduce((most, { at }) => Math.max(most, at), -Infinity));
  const form = new Intl.DateTimeFormat(undefined, FORMS[unit]);
  const rows = starts.slice(0, -1).map((from, place) => ({
    from,
    to: starts[place + 1],
    name: (unit === "week" ? "week of " : "") + form.format(new Date(from * 1000)),
    count: 0,
    byType: new Map(),
    relevance: 0,
  }));
  const totals = new Map();
  for (const { at, type, relevance } of episodes) {
    let low = 0, high = rows.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (rows[middle].from <= at) low = middle;
      else high = middle - 1;
    }
    const row = rows[low];
    row.count += 1;
    row.relevance += (relevance - row.relevance) / row.count;
    row.byType.set(type, (row.byType.get(type) ?? 0) + 1);
    totals.set(type, (totals.get(type) ?? 0) + 1);
  }
  const types = [...totals].sort(([, one], [, other]) => other - one).map(([type]) => type);
  return { unit, types, rows };
}

/** The picture and, for who does not see it or wants the numbers, the table; `addressOf(row)` is what a bar leads to. */
export function chart({ unit, types, rows }, addressOf) {
  const most = Math.max(...rows.map(({ count }) => count));
  const step = WIDTH / rows.length, width = step > 4 ? step - 1 : step;
  const bars = rows.flatMap((row, place) => {
    let top = HEIGHT;
    const parts = types.filter((type) => row.byType.has(type)).map((type) => {
      const height = (row.byType.get(type) / most) * HEIGHT;
      top -= height;
      return svg("rect", { class: shade(types.indexOf(type)), x: place * step, y: top, width, height });
    });
    if (!parts.length) return [];
    const full = svg("rect", { class: "over", x: place * step, y: 0, width: step, height: HEIGHT });
    const group = svg("g", { on: { click: () => (location.hash = addressOf(row)) } }, svg("title", {}, `${row.name}: ${number(row.count)}`), ...parts, full);
    return [group];
  });
  const busiest = rows.find(({ count }) => count === most);
  const summary = `Episodes by ${unit}, from ${rows[0].name} to ${rows.at(-1).name}; most, ${number(most)}, in ${busiest.name}.`;
  return [
    el("figure", { class: "chart" },
      svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": summary }, ...bars),
      el("div", { class: "ends" }, el("span", {}, rows[0].name), rows.length > 1 ? el("span", {}, rows.at(-1).name) : null),
      el("figcaption", {}, el("span", {}, `Most in one ${unit}: ${number(most)}.`),
        types.slice(0, KINDS).map((type, place) => el("span", { class: "key" }, svg("svg", { viewBox: "0 0 8 8", "aria-hidden": "true" }, svg("rect", { class: shade(place), width: 8, height: 8 })), el("bdi", {}, type)))),
    ),
    el("details", {}, el("summary", {}, "As a table"),
      el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Episodes over time" },
        el("table", {},
          el("caption", { class: "unseen" }, "Episodes over time"),
          el("thead", {}, el("tr", {}, ...[unit[0].toUpperCase() + unit.slice(1), "Episodes", "Average relevance", ...types].map((name, place) => el("th", { scope: "col", class: place ? "number" : null }, el("bdi", {}, name))))),
          el("tbody", {}, rows.filter(({ count }) => count).reverse().map((row) => el("tr", {},
            el("th", { scope: "row" }, el("a", { href: addressOf(row) }, row.name)),
            ...[number(row.count), percent(row.relevance), ...types.map((type) => number(row.byType.get(type) ?? 0))].map((text) => el("td", { class: "number" }, text)))))))),
  ];
}

const shade = (place) => `shade-${Math.min(place, KINDS - 1)}`;
