// What the page shows, and its form as a URL.

/**
 * @typedef {object} State
 * @property {string} q text of the query.
 * @property {Object<number, string>} prompts texts of single models, instead of `q`.
 * @property {number[] | null} models numbers of the models that are shown; null for all.
 * @property {string} text what captions must contain.
 * @property {string | null} language of captions; null for any, "" for those that have none.
 * @property {number | null} cache null for all.
 * @property {boolean} fold whether near-duplicates are folded.
 * @property {string} size of images: s, m or l.
 * @property {number | null} similar row whose neighbours are shown.
 * @property {string | null} upload an image of the user's, by its number in this window's memory: in no URL.
 * @property {number | string | null} image row that is shown in detail, or "upload".
 * @property {number} from model whose results it was opened from.
 * @property {string} labels for the image in detail, with commas.
 */

const SIZES = ["s", "m", "l"];

/** The size that was chosen last. */
export function rememberedSize() {
  try {
    const size = localStorage.getItem("clipglot-size");
    return SIZES.includes(size) ? size : "m";
  } catch {
    return "m";
  }
}

export function rememberSize(size) {
  try {
    localStorage.setItem("clipglot-size", size);
  } catch {
    // A browser that keeps nothing: the URL still says it.
  }
}

function wholeNumber(text) {
  return text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null;
}

/** The state that a URL's query string names; what it does not understand, it leaves out. */
export function stateOf(search) {
  const query = new URLSearchParams(search);
  const prompts = {};
  for (const [name, value] of query) {
    const model = /^q(\d{1,3})$/.exec(name);
    if (model && value) prompts[Number(model[1])] = value;
  }
  const models = query.getAll("model").map(wholeNumber).filter((model) => model !== null);
  const size = query.get("size");
  return {
    q: query.get("q") ?? "",
    prompts,
    models: models.length ? models : null,
    text: query.get("text") ?? "",
    language: query.get("language"),
    cache: wholeNumber(query.get("cache")),
    fold: query.get("fold") !== "false",
    size: SIZES.includes(size) ? size : rememberedSize(),
    similar: wholeNumber(query.get("similar")),
    upload: null,
    image: wholeNumber(query.get("image")),
    from: wholeNumber(query.get("from")) ?? 0,
    labels: query.get("labels") ?? "",
  };
}

/** The URL of a state, relative to the page. */
export function urlOf(state) {
  const query = new URLSearchParams();
  if (state.q) query.set("q", state.q);
  for (const [model, prompt] of Object.entries(state.prompts)) if (prompt) query.set(`q${model}`, prompt);
  for (const model of state.models ?? []) query.append("model", model);
  if (state.similar !== null) query.set("similar", state.similar);
  if (state.text) query.set("text", state.text);
  if (state.language !== null) query.set("language", state.language);
  if (state.cache !== null) query.set("cache", state.cache);
  if (!state.fold) query.set("fold", "false");
  if (state.size !== "m") query.set("size", state.size);
  if (typeof state.image === "number") {
    query.set("image", state.image);
    if (state.from) query.set("from", state.from);
    if (state.labels) query.set("labels", state.labels);
  }
  const written = query.toString();
  return written ? `?${written}` : "./";
}

/** Whether a state narrows what is searched. */
export const isFiltered = (state) => Boolean(state.text) || state.language !== null || state.cache !== null;

/** What is asked of the server for a model: its path, its image, and a key that equals for equal answers; or null. */
export function requestOf(state, model, uploads) {
  const query = new URLSearchParams({ model, fold: state.fold });
  if (state.text) query.set("text", state.text);
  if (state.language !== null) query.set("language", state.language);
  if (state.cache !== null) query.set("cache", state.cache);
  if (state.upload !== null) {
    const image = uploads.get(state.upload);
    return image ? { path: `search?${query}`, image, key: `upload ${state.upload} ${query}` } : null;
  }
  if (state.similar !== null) {
    const path = `similar/${state.similar}?${query}`;
    return { path, image: null, key: path };
  }
  const text = (state.prompts[model] ?? state.q).trim();
  if (!text) return null;
  query.set("q", text);
  return { path: `search?${query}`, image: null, key: `search?${query}` };
}
