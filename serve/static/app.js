// The page: its fields, its history, and what of it is where.

import { Problem, ask, setImageVersion, thumbnail } from "./api.js";
import { Column } from "./column.js";
import { Details } from "./details.js";
import { CROSS, debounced, element, icon, languageName, named, number, plural, visible } from "./dom.js";
import { isFiltered, rememberSize, requestOf, stateOf, urlOf } from "./state.js";

const PAUSE_MS = 60; // to the next key, where answers or images take longer than keys
const at = (id) => document.getElementById(id);
const fields = { q: at("q"), text: at("text"), language: at("language"), cache: at("cache"), fold: at("fold") };

const uploads = new Map(); // of this window: number -> {blob, url, name}
const blobs = { get: (upload) => uploads.get(upload)?.blob ?? null };
let state = { ...stateOf(location.search), upload: history.state?.upload ?? null };
let info = null;
let columns = [];
let isTyping = false; // the newest entry of the history is of a text that is not finished
let isUnwritten = false; // the URL is behind the state
let similarHit = null; // what is known of the image whose neighbours are shown
const seen = new Map(); // row -> hit, of rows in detail that need not be among the results
let lastLabels = ""; // that an image was given: the next one gets them, too
let dragged = null; // hit of an image that is dragged from the page
let gallery = null; // an AbortController of the examples

const page = {
  state: () => state,
  href: (hit, model) => urlOf({ ...state, image: hit.row, from: model, labels: "" }),
  open: (hit, column) => open(hit, column.model.number),
  query: (model) => {
    if (state.upload !== null) return { image: uploads.get(state.upload)?.name };
    return state.similar !== null ? { similar_to: state.similar } : state.prompts[model] ?? state.q;
  },
  drawn: () => state.image !== null && showDetails(),
  focusQuery: () => fields.q.focus(),
  prompt: (model, text, isCommitted) => typed({ prompts: { ...state.prompts, [model]: text || undefined } }, isCommitted),
  suggestions,
  tellNothing,
  close: closeDetails,
  step,
  similar: (hit) => {
    similarHit = hit;
    go({ similar: hit.row, upload: null, image: null, q: "", prompts: {} });
    window.scrollTo({ top: 0 });
  },
  openRow,
  labels: (text) => {
    lastLabels = text;
    state = { ...state, labels: text };
    write("replaceState");
  },
};
const details = new Details(at("details"), page);

/** Write the state into the history. */
function write(how, more = {}) {
  isUnwritten = false;
  const kept = how === "replaceState" ? history.state : null;
  history[how]({ upload: state.upload, opened: state.image === null ? 0 : (kept?.opened ?? 0), y: window.scrollY, ...more }, "", urlOf(state));
  document.title = state.q && state.similar === null ? `${visible(state.q)} – clipglot search` : "clipglot search";
}

/** Safari throws after a hundred changes of the history within some seconds. */
const writeSoon = debounced(() => isUnwritten && write("replaceState"), 150);

/** Change the state with a new entry in the history. */
function go(change, { typedAt = null, more = {} } = {}) {
  write("replaceState"); // keeps where the entry was scrolled to
  isTyping = false;
  state = { ...state, ...change };
  write("pushState", more);
  show(typedAt);
}

/** Change the state as somebody types: one entry in the history for a text, however many keys it took. */
function typed(change, isCommitted = false) {
  const typedAt = performance.now();
  const next = { ...state, ...change };
  if (urlOf(next) === urlOf(state)) {
    if (isCommitted) isTyping = false;
    return;
  }
  if (!isTyping) write("replaceState");
  state = next;
  if (isTyping && !isCommitted) {
    isUnwritten = true;
    writeSoon();
  } else write(isTyping ? "replaceState" : "pushState");
  isTyping = !isCommitted;
  clearTimeout(typed.timer);
  typed.timer = setTimeout(() => show(typedAt), columns.some((column) => column.isBusy()) ? PAUSE_MS : 0);
}

/** Bring the page in line with the state. */
function show(typedAt = null) {
  clearTimeout(typed.timer);
  document.documentElement.dataset.size = state.size;
  for (const name of ["q", "text"]) if (document.activeElement !== fields[name] || !isTyping) setValue(fields[name], state[name]);
  fields.language.value = state.language === null ? "any" : `=${state.language}`;
  fields.cache.value = state.cache ?? "any";
  fields.fold.checked = state.fold;
  for (const radio of document.querySelectorAll("[name=size]")) radio.checked = radio.value === state.size;
  showChip();
  if (!info) return;
  layColumns();
  const isLost = state.upload !== null && !uploads.has(state.upload);
  let isSearching = isLost;
  for (const column of columns) {
    const request = requestOf(state, column.model.number, blobs);
    isSearching ||= request !== null;
    column.show(request, typedAt);
  }
  at("trouble").hidden = !isLost;
  if (isLost) at("trouble").textContent = "The image of this search is no longer here, since the page was loaded again: drop it once more.";
  at("columns").hidden = !isSearching || isLost;
  showStart(!isSearching);
  showDetails();
}

function setValue(field, value) {
  if (field.value !== value) field.value = value;
}

function shownModels() {
  const all = info.models.map((model, index) => ({ ...model, number: index }));
  const chosen = all.filter((model) => !state.models || state.models.includes(model.number));
  return chosen.length ? chosen : all;
}

function layColumns() {
  const models = shownModels();
  for (const box of document.querySelectorAll("[name=model]")) {
    box.checked = models.some((model) => model.number === Number(box.value));
    box.disabled = box.checked && models.length === 1;
  }
  const isAlone = info.models.length === 1;
  if (models.map((model) => model.number).join() === columns.map((column) => column.model.number).join()) return;
  columns.filter((column) => !models.some((model) => model.number === column.model.number)).forEach((column) => column.remove());
  columns = models.map((model) => columns.find((column) => column.model.number === model.number) ?? new Column(model, page, isAlone));
  at("columns").replaceChildren(...columns.map((column) => column.node));
  at("columns").dataset.count = columns.length;
}

// ---------------------------------------------------------------- image queries

function showChip() {
  const chip = at("chip");
  const upload = uploads.get(state.upload);
  const isShown = upload !== undefined || state.similar !== null;
  chip.hidden = !isShown;
  fields.q.placeholder = isShown ? "or describe an image" : "Describe an image";
  if (!isShown) return chip.replaceChildren();
  const name = upload ? upload.name : "like this image";
  const image = element("img", { src: upload ? upload.url : thumbnail(state.similar, 32), alt: "", width: "32", height: "32" });
  image.addEventListener("error", () => image.remove());
  const open = () => (upload ? go({ image: "upload", from: 0 }, { more: { opened: 1 } }) : openRow(state.similar, similarHit));
  return chip.replaceChildren(
    element("button", { type: "button", class: "quiet what", title: "details and labels", click: open }, image, named(name)),
    element("button", { type: "button", class: "quiet", "aria-label": "remove the image", title: "remove the image", click: removeImage }, icon(CROSS)),
  );
}

function removeImage() {
  go({ upload: null, similar: null });
  fields.q.focus();
}

function searchByImage(file) {
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) {
    at("trouble").replaceChildren(named(file.name), " is not an image.");
    at("trouble").hidden = false;
    return;
  }
  const upload = `${Date.now()}-${uploads.size}`;
  uploads.set(upload, { blob: file, url: URL.createObjectURL(file), name: file.name || "pasted image" });
  go({ upload, similar: null, image: null, q: "", prompts: {} });
  window.scrollTo({ top: 0 });
}

// ---------------------------------------------------------------- details

function open(hit, model) {
  if (hit.key !== null) seen.set(hit.row, hit);
  go({ image: hit.row, from: model }, { more: { opened: oneMore() } });
}

/** How many entries of the history show details up to a new one; 0 if the page began with details. */
function oneMore() {
  const opened = history.state?.opened ?? 0;
  return details.isOpen ? opened && opened + 1 : 1;
}

const unknown = (row) => ({ row, cache: null, key: null, score: null, captions: [], alike: [] });

/** Show a row that need not be among the results: one folded under another, or the image whose neighbours are shown. */
function openRow(row, like) {
  open(like?.row === row ? like : unknown(row), state.from);
}

/** Ask for key and captions of a row that is not among the results. */
async function findOut(row) {
  try {
    seen.set(row, { ...unknown(row), ...(await ask(`row/${row}`)) });
    if (state.image === row) showDetails();
  } catch (error) {
    if (!(error instanceof Problem || error instanceof TypeError)) throw error;
  }
}

function showDetails() {
  if (state.image === null) {
    if (details.isOpen) closeAndFocus();
    return;
  }
  const models = info.models.map((model) => model.name);
  const common = { model: state.from < models.length ? state.from : 0, labels: state.labels || lastLabels, modelName: models.length > 1 ? models[state.from] : null, caches: info.caches.length > 1 ? info.caches : null };
  if (state.image === "upload") {
    const upload = uploads.get(state.upload);
    if (upload) details.show({ ...common, hit: null, upload });
    return;
  }
  const column = columns.find((each) => each.model.number === state.from) ?? columns[0];
  const hits = column?.answer?.hits ?? [];
  const index = hits.findIndex((hit) => hit.row === state.image);
  const isWaiting = column?.request && !column.answer; // it may be among the results that come
  if (index < 0 && !isWaiting && !seen.has(state.image)) {
    seen.set(state.image, unknown(state.image)); // asked for once
    findOut(state.image);
  }
  details.show({ ...common, hit: hits[index] ?? seen.get(state.image) ?? unknown(state.image), upload: null, position: index < 0 ? "" : `${number(index + 1)} of ${number(hits.length)}` });
}

function step(by) {
  const column = columns.find((each) => each.model.number === state.from) ?? columns[0];
  const index = column.answer.hits.findIndex((hit) => hit.row === state.image) + by;
  const hit = column.answer.hits[index];
  if (index >= column.answer.hits.length - 3) column.more();
  if (!hit) return;
  seen.set(hit.row, hit);
  state = { ...state, image: hit.row };
  write("replaceState");
  showDetails();
}

function closeDetails() {
  if (history.state?.opened) {
    history.go(-history.state.opened); // to the entry before they were opened
  } else {
    state = { ...state, image: null, labels: "" };
    write("replaceState");
    showDetails();
  }
}

function closeAndFocus() {
  const row = details.shown?.hit?.row;
  details.close();
  for (const column of columns) {
    const index = column.answer?.hits.findIndex((hit) => hit.row === row) ?? -1;
    if (index >= 0) {
      column.focusTile(index);
      return;
    }
  }
}

// ---------------------------------------------------------------- start, and nothing found

async function showStart(isShown) {
  const start = at("start");
  start.hidden = !isShown;
  gallery?.abort();
  if (!isShown || start.childElementCount) return;
  const examples = info.examples.slice(0, 6);
  const cards = examples.map((example) => {
    const strip = element("span", { class: "strip", "aria-hidden": "true" });
    return { example, strip, node: element("button", { type: "button", class: "example", click: () => go({ q: example }) }, strip, element("span", { dir: "auto" }, example)) };
  });
  start.replaceChildren(
    element("h2", {}, `Search ${plural(info.num_images, "image")}`, info.caches.length === 1 ? " of " : "", info.caches.length === 1 ? named(info.caches[0].name) : ""),
    element("p", { class: "lead" }, "Write what an image shows, or drop, paste or choose an image to find others like it. ", element("code", {}, "a dog +snow -leash"), " adds and takes away."),
    cards.length ? element("h3", {}, "For example") : "",
    element("div", { class: "examples" }, ...cards.map((card) => card.node)),
    element("p", { class: "keys" }, ...[["/", "search"], ["arrows", "from image to image"], ["Enter", "details"], ["Esc", "back"]].flatMap(([key, what]) => [element("kbd", {}, key), ` ${what} `])),
  );
  gallery = new AbortController();
  try {
    for (const { example, strip } of cards) {
      const body = await ask(`search?${new URLSearchParams({ q: example, model: 0, limit: 5, offset: 0, fold: true })}`, { signal: gallery.signal });
      strip.replaceChildren(...body.hits.slice(0, 5).map((hit) => {
        const image = element("img", { src: thumbnail(hit.row, 80), alt: "", width: "80", height: "80" });
        image.addEventListener("error", () => image.classList.add("gone"));
        return image;
      }));
    }
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof Problem)) throw error;
  }
}

/** Examples to click. */
function suggestions() {
  const search = (q) => go({ ...stateOf(""), size: state.size, models: state.models, q });
  const buttons = info.examples.slice(0, 4).map((example) => element("button", { type: "button", dir: "auto", click: () => search(example) }, example));
  return buttons.length ? element("span", { class: "suggestions" }, "For example ", ...buttons) : "";
}

function tellNothing(column, num) {
  const clear = element("button", { type: "button", click: () => go({ text: "", language: null, cache: null }) }, "Clear the filters");
  column.notice.replaceChildren(num ? "No image found." : isFiltered(state) ? "No image passes the filters." : "There is no image to find.", isFiltered(state) ? clear : "", suggestions());
  column.notice.classList.remove("failed");
  column.notice.hidden = false;
}

// ---------------------------------------------------------------- wiring

/** A text in the making that no search should see: the Latin letters from which a Chinese or Japanese text is made. */
const isHalfWritten = (event) => event.isComposing && /[a-zA-Z']/.test(event.data ?? "");

function listen() {
  const asked = () => typed(fields.q.value ? { q: fields.q.value, upload: null, similar: null } : { q: "" });
  fields.q.addEventListener("input", (event) => isHalfWritten(event) || asked());
  fields.q.addEventListener("compositionend", asked);
  fields.text.addEventListener("input", (event) => event.isComposing || typed({ text: fields.text.value }));
  for (const field of [fields.q, fields.text]) field.addEventListener("change", () => (isTyping = false));
  fields.q.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && !event.isComposing && columns[0]?.answer?.hits.length) {
      event.preventDefault();
      columns[0].focusTile(0);
    }
    if (event.key === "Backspace" && !fields.q.value && !at("chip").hidden) removeImage();
  });
  at("search").addEventListener("submit", (event) => {
    event.preventDefault();
    isTyping = false;
    show(performance.now());
  });
  fields.language.addEventListener("change", () => go({ language: fields.language.value === "any" ? null : fields.language.value.slice(1) }));
  fields.cache.addEventListener("change", () => go({ cache: fields.cache.value === "any" ? null : Number(fields.cache.value) }));
  fields.fold.addEventListener("change", () => go({ fold: fields.fold.checked }));
  at("sizes").addEventListener("change", (event) => {
    rememberSize(event.target.value);
    go({ size: event.target.value });
  });
  at("models").addEventListener("change", () => {
    const chosen = [...document.querySelectorAll("[name=model]:checked")].map((box) => Number(box.value));
    go({ models: chosen.length === info.models.length ? null : chosen });
  });
  at("show-filters").addEventListener("click", () => {
    const isOpen = at("search").classList.toggle("with-filters");
    at("show-filters").setAttribute("aria-expanded", isOpen);
  });
  at("home").addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go({ ...stateOf(""), size: state.size });
    fields.q.focus();
  });
  at("choose").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => {
    searchByImage(at("file").files[0]);
    at("file").value = "";
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || details.isOpen || event.target.closest("input, textarea, select") || event.metaKey || event.ctrlKey || event.altKey) return;
    event.preventDefault();
    fields.q.focus();
    fields.q.select();
  });
  document.addEventListener("paste", (event) => {
    const image = [...(event.clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"));
    if (!image) return;
    event.preventDefault();
    searchByImage(image);
  });
  listenToDrops();
  window.addEventListener("popstate", (event) => {
    isTyping = isUnwritten = false;
    state = { ...stateOf(location.search), upload: event.state?.upload ?? null };
    show();
    if (!details.isOpen && event.state?.y !== undefined) window.scrollTo({ top: event.state.y });
  });
  window.addEventListener("resize", debounced(() => columns.forEach((column) => column.answer && column.draw()), 200));
}

function listenToDrops() {
  let depth = 0;
  const carries = (event) => dragged !== null || [...(event.dataTransfer?.types ?? [])].includes("Files");
  const end = () => {
    depth = 0;
    at("drop").hidden = true;
  };
  document.addEventListener("dragstart", (event) => {
    const link = event.target.closest?.(".grid a");
    const column = columns.find((each) => each.grid.contains(link));
    dragged = column ? column.answer.hits[Number(link.dataset.index)] : null;
  });
  document.addEventListener("dragend", () => {
    dragged = null;
    end();
  });
  document.addEventListener("dragenter", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth += 1;
    at("drop").hidden = false;
  });
  document.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  document.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) at("drop").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    end();
    if (dragged) page.similar(dragged);
    else searchByImage(event.dataTransfer.files[0]);
    dragged = null;
  });
}

/** Fill in what the server has: languages, caches, models. */
function showInfo() {
  const languages = Object.entries(info.languages).sort(([, a], [, b]) => b - a);
  fields.language.replaceChildren(element("option", { value: "any" }, "any"), ...languages.map(([tag, count]) => element("option", { value: `=${tag}` }, `${languageName(tag)} (${number(count)})`)));
  at("languages").hidden = languages.length < 2 && state.language === null;
  fields.cache.replaceChildren(element("option", { value: "any" }, `all (${number(info.num_images)})`), ...info.caches.map((cache, index) => element("option", { value: index }, `${visible(cache.name)} (${number(cache.images)})`)));
  at("caches").hidden = info.caches.length < 2;
  at("models").hidden = info.models.length < 2;
  at("models").append(...info.models.map((model, index) => element("label", { class: "check" }, element("input", { type: "checkbox", name: "model", value: index }), " ", named(model.name))));
}

async function start() {
  try {
    info = await ask("info");
    setImageVersion(info.image_version);
  } catch (error) {
    at("trouble").replaceChildren(element("span", { dir: "auto" }, error.message), error.status === 401 ? "" : element("button", { type: "button", click: start }, "Try again"));
    at("trouble").hidden = false;
    return;
  }
  at("trouble").hidden = true;
  showInfo();
  show();
}

history.scrollRestoration = "manual";
listen();
show();
if (state.image === null) fields.q.focus();
start();
