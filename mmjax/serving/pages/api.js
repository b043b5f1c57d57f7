// Requests to the server this page came from.

let key = "";

/** Use this API key from now on; it stays in memory. */
export function useKey(given) {
  key = given;
}

/** What a server tells when it refuses: the HTTP status, its word for the reason, a line for each thing that is wrong. */
export class Refused extends Error {
  constructor(status, reason, lines, requestId) {
    super(lines.join("; "));
    Object.assign(this, { status, reason, lines, requestId });
  }
}

/** The document at a path, what the server says of its time, and how long it took from here. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const started = performance.now();
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch {
    throw new Refused(0, "no-answer", ["The server does not answer. Is it still running?"], "");
  }
  let document = null;
  try {
    document = await reply.json();
  } catch {
    // Told below: what is no JSON is no answer.
  }
  const milliseconds = performance.now() - started;
  if (!reply.ok && !options.anyStatus) throw refusal(reply, document);
  if (document === null) throw new Refused(reply.status, "no-json", ["The server's answer is no JSON."], "");
  return { document, milliseconds, timing: serverTiming(reply.headers.get("server-timing") ?? "") };
}

function refusal(reply, problem) {
  const lines = problem?.errors ?? [problem?.detail ?? problem?.error ?? reply.statusText];
  const reason = String(problem?.type ?? "").replace("urn:mmjax:", "");
  const wait = reply.headers.get("retry-after");
  return new Refused(reply.status, reason, wait ? [...lines, `Try again in ${wait} s.`] : lines, problem?.request_id ?? "");
}

/** `queue;dur=0.1, infer;dur=2` as [[name, milliseconds], ...]. */
export function serverTiming(header) {
  const found = [];
  for (const part of header.split(",")) {
    const [name, ...rest] = part.trim().split(";");
    const told = rest.map((word) => /^\s*dur=([\d.e+-]+)$/.exec(word)).find(Boolean);
    if (name && told) found.push([name, Number(told[1])]);
  }
  return found;
}
