// Requests to the server.

/** A request that failed; the message is for the user. */
export class Problem extends Error {
  constructor(message, status = 0, body = {}) {
    super(message);
    this.status = status; // 0: no answer
    this.body = body;
  }
}

/**
 * The JSON of an answer.
 *
 * @param {string} path relative to the page.
 * @param {{signal?: AbortSignal, image?: Blob}} options an image makes it a POST.
 * @throws {Problem} no answer, or an error in it; AbortError passes.
 */
export async function ask(path, { signal, image } = {}) {
  const options = image ? { method: "POST", body: image, headers: { "Content-Type": image.type || "image/*" } } : {};
  let answer;
  let body;
  try {
    answer = await fetch(path, { ...options, signal });
    body = await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (answer && answer.ok === false) throw new Problem(`The server answers ${answer.status}`, answer.status);
    throw new Problem("The server does not answer");
  }
  if (answer.status === 401) {
    throw new Problem("This server wants its token: open the address that clipglot serve printed", 401);
  }
  if (!answer.ok) throw new Problem(body?.error ?? `The server answers ${answer.status}`, answer.status, body ?? {});
  return body;
}

let version = "";

/** Take what the server calls its images now: with it in their URLs the browser asks for each of them once. */
export function setImageVersion(text) {
  version = text;
}

/** The URL of a thumbnail that fills so many CSS pixels. */
export function thumbnail(row, cssPixels) {
  const wanted = cssPixels * Math.min(window.devicePixelRatio || 1, 2) * 0.8;
  return `image/${row}?side=${[128, 256].find((side) => side >= wanted) ?? 512}&v=${version}`;
}

/** The URL of the uncut image. */
export const wholeImage = (row) => `image/${row}?side=512&whole=true&v=${version}`;

/** Why an image cannot be shown, `{key, reason}`; null if it can. */
export async function whyUnreadable(url) {
  try {
    await fetch(url).then(async (answer) => {
      if (!answer.ok) {
        const body = await answer.json();
        throw new Problem(body.error, answer.status, body);
      }
    });
  } catch (error) {
    return error instanceof Problem
      ? { key: error.body.key ?? null, reason: error.message }
      : { key: null, reason: "the server does not answer" };
  }
  return null;
}
