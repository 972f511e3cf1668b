// Asking the server: the session, and its refusals in words.
//
// Tokens are in memory only. A reload asks for the password again; nothing is left in the browser that could be taken.

export const needsLogin = document.querySelector('meta[name="login"]').content === "required";

const RENEW_MS = 30_000; // so long before an access token ends a new one is fetched
let session = null;
let renewing = null;

/** What the server refused, or that it does not answer (status 0). */
export class Refused extends Error {
  constructor(status, { error, remedy = "", request_id = "" }, retryAfterS = 0) {
    super(error);
    Object.assign(this, { status, remedy, requestId: request_id, retryAfterS });
  }
}

export const username = () => session?.username ?? null;

const keep = (answer, name) => {
  session = {
    username: name,
    access: answer.access_token,
    refresh: answer.refresh_token,
    renewAt: performance.now() + answer.expires_in * 1000 - RENEW_MS,
  };
};

export async function logIn(name, password) {
  const answer = await send("POST", "/api/v1/auth/login", { body: { username: name, password } });
  keep(await answer.json(), name);
}

export async function logOut() {
  const token = session?.access;
  session = null;
  if (token) await send("POST", "/api/v1/auth/logout", { body: {}, token }).catch(() => {}); // it ends by itself
}

/** The answer to a request as JSON; Refused where there is none. With status 401 the session is over. */
export async function ask(method, path, { query, body, signal } = {}) {
  return (await request(method, path, { query, body, signal })).json();
}

/** All that a search found: what its answer had no room for is asked for by its ids. */
export async function allResults(agent, { results, left = [] }, { asOf, signal }) {
  const all = [...results];
  for (let rest = left; rest.length;) {
    const body = { ids: rest.map(({ episodeId }) => episodeId), asOf };
    const { episodes } = await ask("POST", path`/memory/${agent}/episodes/get`, { body, signal });
    episodes.forEach((episode, place) => episode && all.push({ ...rest[place], episode }));
    rest = rest.slice(episodes.length);
  }
  return all;
}

/** What the store says about durability, and the server's clock: for each reader, not for administrators alone. */
export async function askDurability(signal) {
  const answer = await request("GET", "/metrics", { signal });
  const text = await answer.text();
  const figure = (name) => {
    const found = new RegExp(`^qilbee_${name} (\\S+)$`, "m").exec(text);
    return found ? Number(found[1]) : null;
  };
  return {
    nowS: Date.parse(answer.headers.get("date")) / 1000 || null,
    unsyncedAgeS: (figure("durability_unsynced_age_ms") ?? 0) / 1000,
    tells: figure("durability_durable_sequence") !== null,
    pending: figure("search_pending"),
  };
}

/** Health is for everybody, and 503 is an answer too. */
export async function askHealth(signal) {
  const answer = await send("GET", "/health", { signal, expected: 503 });
  return answer.json();
}

/** A path of the server; what is between its parts is quoted. */
export const path = (strings, ...values) => String.raw({ raw: strings }, ...values.map(encodeURIComponent));

async function request(method, where, options) {
  const used = session;
  try {
    return await send(method, where, { ...options, token: await token() });
  } catch (refused) {
    if (refused.status !== 401 || session === null) throw refused;
    if (session === used) await renew(); // the server ended the access token sooner than it had said
    return send(method, where, { ...options, token: session.access });
  }
}

async function token() {
  if (session && performance.now() > session.renewAt) await renew();
  return session?.access;
}

function renew() {
  renewing ??= (async () => {
    const { refresh, username: name } = session;
    try {
      const answer = await send("POST", "/api/v1/auth/refresh", { body: { refresh_token: refresh } });
      const renewed = await answer.json();
      if (session) keep(renewed, name);
    } catch (refused) {
      if (refused.status === 401) session = null;
      throw refused;
    } finally {
      renewing = null;
    }
  })();
  return renewing;
}

async function send(method, where, { query = {}, body, token, signal, expected } = {}) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined && value !== ""));
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(asked.size ? `${where}?${asked}` : where, {
      method,
      headers,
      body: body && JSON.stringify(body),
      signal,
      credentials: "omit",
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    dispatchEvent(new Event("no-answer"));
    throw new Refused(0, { error: "the server does not answer", remedy: "see whether it runs, and try again" });
  }
  if (answer.ok || answer.status === expected) return answer;
  const said = await answer.json().catch(() => ({ error: `the server answers ${answer.status}` }));
  throw new Refused(answer.status, said, Number(answer.headers.get("retry-after")) || 0);
}
